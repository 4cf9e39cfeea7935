//! Event files that TensorBoard reads: records in TFRecord framing, each an `Event` message.
//!
//! A record is the length of its data as a little-endian u64, the masked CRC-32C of these eight bytes, the data, and the
//! masked CRC-32C of the data (TensorFlow, "TFRecord and tf.train.Example", TFRecords format details). The messages are
//! those of `event.proto` and `summary.proto`, as far as scalars need them.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use marionette_models::{FileError, files};
use prost::Message;

use crate::error::Result;

/// What the names of event files begin with; TensorBoard looks for `tfevents` in a name.
const PREFIX: &str = "events.out.tfevents.";
/// The version that every event file says of itself first. From this version on, a session's start drops later steps.
const VERSION: &str = "brain.Event:2";
/// `SessionLog.SessionStatus.START`.
const START: i32 = 1;

/// `Event` of `event.proto`.
#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

/// The `oneof what` of an `Event`.
#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

/// `Summary` of `summary.proto`.
#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

/// `Summary.Value`.
#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    // Of a `oneof`, therefore written also where it is zero.
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// `SessionLog` of `event.proto`.
#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// An event file being written.
#[derive(Debug)]
pub struct TensorBoard {
    file: File,
    path: PathBuf,
}

impl TensorBoard {
    /// Begins a new event file `events.out.tfevents.SECONDS.HOST` in `dir`, which is made where it is missing.
    /// `resumed_at` is the last step that a resumed run had done: TensorBoard then drops what older files of the folder
    /// say of later steps.
    ///
    /// # Errors
    /// The folder or the file cannot be made or written.
    pub fn create(dir: &Path, resumed_at: Option<i64>) -> Result<Self> {
        let failed = |error| FileError::new(dir, format!("no event file can be made in it: {error}"));
        files::create_folders(dir)?;
        // TensorBoard reads the files in the order of their names, so a clock that went back must not put this one first.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut seconds = newest(dir).map_err(failed)?.map_or(now, |newest| now.max(newest.saturating_add(1)));
        let (file, path) = loop {
            let path = dir.join(format!("{PREFIX}{seconds:010}.{}", host_name()));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => break (file, path),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => seconds += 1,
                Err(error) => return Err(failed(error).into()),
            }
        };
        let mut writer = Self { file, path };
        writer.write(0, What::FileVersion(VERSION.to_owned()))?;
        if let Some(step) = resumed_at {
            writer.write(step.saturating_add(1), What::SessionLog(SessionLog { status: START }))?;
        }
        Ok(writer)
    }

    /// Writes scalars of one step, by tag. They are with the system when this returns: no end of the program loses them.
    ///
    /// # Errors
    /// What writing says.
    pub fn scalars(&mut self, step: i64, values: &[(&str, f32)]) -> Result<()> {
        let value = |&(tag, value): &(&str, f32)| Value { tag: tag.to_owned(), simple_value: Some(value) };
        self.write(step, What::Summary(Summary { value: values.iter().map(value).collect() }))
    }

    /// Where it is written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write(&mut self, step: i64, what: What) -> Result<()> {
        let wall_time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let record = framed(&Event { wall_time, step, what: Some(what) }.encode_to_vec());
        let failed = |error| FileError::new(&self.path, format!("cannot be written: {error}"));
        Ok(self.file.write_all(&record).map_err(failed)?)
    }
}

/// A record around `data`.
fn framed(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(masked(crc32c::crc32c(&length)).to_le_bytes());
    record.extend(data);
    record.extend(masked(crc32c::crc32c(data)).to_le_bytes());
    record
}

/// ((crc >> 15) | (crc << 17)) + 0xa282ead8, so that the CRC of data with CRCs in it stays a good one.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The seconds of the newest event file of a folder.
fn newest(dir: &Path) -> std::io::Result<Option<u64>> {
    let mut newest = None;
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let seconds = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('.').next()?.parse().ok());
        newest = newest.max(seconds);
    }
    Ok(newest)
}

/// The name of this machine as far as a file name takes it, or "marionette".
fn host_name() -> String {
    let read = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = read.trim().chars().filter(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).collect();
    if name.is_empty() { "marionette".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRC-32C bit by bit: the reflected polynomial 0x82F63B78, ones at first and inverted at the end (RFC 3720, B.4).
    fn crc_bit_by_bit(data: &[u8]) -> u32 {
        !data.iter().fold(!0, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc: u32, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1)))
        })
    }

    #[test]
    fn the_checksums_are_those_of_the_documentation() {
        // The check value of CRC-32C, and RFC 3720's 32 bytes of zeros.
        assert_eq!((crc_bit_by_bit(b"123456789"), crc32c::crc32c(b"123456789")), (0xe306_9283, 0xe306_9283));
        assert_eq!((crc_bit_by_bit(&[0; 32]), crc32c::crc32c(&[0; 32])), (0x8a91_36aa, 0x8a91_36aa));
        // By hand: 0xe3069283 >> 15 = 0x1c60d, << 17 = 0x25060000; 0x2507c60d + 0xa282ead8.
        assert_eq!(masked(0xe306_9283), 0xc78a_b0e5);
    }

    /// The data of a file's records, their framing checked.
    fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mask = |crc: u32| (crc / (1 << 15) + crc % (1 << 15) * (1 << 17)).wrapping_add(0xa282_ead8).to_le_bytes();
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            assert_eq!(bytes[8..12], mask(crc_bit_by_bit(&bytes[..8])));
            let data = &bytes[12..12 + length];
            assert_eq!(bytes[12 + length..16 + length], mask(crc_bit_by_bit(data)));
            found.push(data.to_vec());
            bytes = &bytes[16 + length..];
        }
        found
    }

    /// A message after its wall time: field 1, eight bytes.
    fn without_time(record: &[u8]) -> &[u8] {
        assert_eq!(record[0], 0x09);
        &record[9..]
    }

    #[test]
    fn records_are_the_bytes_of_the_wire_format() {
        let folder = tempfile::tempdir().unwrap();
        let mut board = TensorBoard::create(&folder.path().join("new/events"), Some(299)).unwrap();
        board.scalars(300, &[("loss", 0.5), ("b", 0.0)]).unwrap();
        // Nothing is closed: a killed program leaves the same file.
        let records = records(&fs::read(board.path()).unwrap());
        assert_eq!(records.len(), 3);
        assert_eq!(without_time(&records[0]), b"\x1a\x0dbrain.Event:2");
        // Step 300 = 0xac 0x02; field 7, a message with field 1 = 1.
        assert_eq!(without_time(&records[1]), b"\x10\xac\x02\x3a\x02\x08\x01");
        // Field 5 with two of field 1: the tag, and the value as a float, zero included.
        let expected = b"\x10\xac\x02\x2a\x17\x0a\x0b\x0a\x04loss\x15\0\0\0\x3f\x0a\x08\x0a\x01b\x15\0\0\0\0";
        assert_eq!(without_time(&records[2]), expected);
        let seconds = f64::from_le_bytes(records[2][1..9].try_into().unwrap());
        assert!(seconds > 1.7e9, "{seconds}");
    }

    #[test]
    fn a_later_file_comes_after_the_older_ones_by_name() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("events.out.tfevents.4102444800.elsewhere"), b"").unwrap();
        let mut names: Vec<_> = (0..3)
            .map(|_| TensorBoard::create(folder.path(), None).unwrap().path().file_name().unwrap().to_owned())
            .collect();
        assert!(names[0].to_str().unwrap().starts_with("events.out.tfevents.4102444801."), "{names:?}");
        let written = names.clone();
        names.sort();
        names.dedup();
        assert_eq!(names, written);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = TensorBoard::create(&file.path().join("events"), None).unwrap_err().to_string();
        assert!(error.starts_with(file.path().to_str().unwrap()) && error.lines().count() == 1, "{error}");
    }

    #[test]
    fn tensorboard_reads_the_scalars_and_drops_what_a_resumed_run_does_again() {
        use std::process::Command;
        let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
        let has =
            Command::new(&python).args(["-c", "import tensorboard"]).output().is_ok_and(|run| run.status.success());
        if !has {
            eprintln!("skipped: {python} has no package tensorboard");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let mut board = TensorBoard::create(folder.path(), None).unwrap();
        for (step, loss) in [(1, 4.0), (2, 3.0), (3, 2.5)] {
            board.scalars(step, &[("loss", loss), ("learning_rate", 0.0)]).unwrap();
        }
        // Killed within a record.
        let killed = board.path().to_owned();
        let whole = fs::metadata(&killed).unwrap().len();
        OpenOptions::new().write(true).open(&killed).unwrap().set_len(whole - 3).unwrap();
        let mut board = TensorBoard::create(folder.path(), Some(1)).unwrap();
        board.scalars(2, &[("loss", 0.25)]).unwrap();
        let run = Command::new(&python).args(["-c", READ]).arg(folder.path()).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        assert_eq!(String::from_utf8_lossy(&run.stdout).trim(), "[(1, 4.0), (2, 0.25)] [(1, 0.0)]");
    }

    const READ: &str = "import sys\n\
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n\
        events = EventAccumulator(sys.argv[1]).Reload()\n\
        print(*([(e.step, e.value) for e in events.Scalars(tag)] for tag in ('loss', 'learning_rate')))";
}
