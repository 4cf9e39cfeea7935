//! The event files of a run, read as TensorBoard reads them.

use std::collections::BTreeMap;
use std::path::Path;

use marionette_trainer::train::read_metrics;
use prost::Message;

use super::contents;

/// `Event` of TensorBoard's event.proto, as far as it is written here.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session: Option<Session>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    values: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, tag = "2")]
    value: f32,
}

#[derive(Clone, PartialEq, Message)]
struct Session {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// The event files of a run, read as TensorBoard does, show its metrics: each step once.
pub fn same_curves(run: &Path) {
    let mut curves: BTreeMap<String, Vec<(i64, f32)>> = BTreeMap::new();
    for bytes in contents(&run.join("tensorboard")).values() {
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let event = Event::decode(&rest[12..12 + length]).unwrap();
            rest = &rest[16 + length..];
            if event.session.is_some_and(|session| session.status == 1) {
                // A session that starts here: what others said of this step and later ones is void.
                curves.values_mut().for_each(|curve| curve.retain(|&(step, _)| step < event.step));
            }
            for Value { tag, value } in event.summary.into_iter().flat_map(|summary| summary.values) {
                curves.entry(tag).or_default().push((event.step, value));
            }
        }
    }
    let metrics = read_metrics(run).unwrap();
    let steps = |curve: &[(i64, f32)]| curve.iter().map(|(step, _)| *step).collect::<Vec<_>>();
    let losses: Vec<(i64, f32)> =
        metrics.iter().filter_map(|line| Some((line.iteration as i64, line.loss? as f32))).collect();
    assert_eq!(curves["loss"], losses);
    let validated = metrics.iter().filter(|line| line.validation.is_some()).map(|line| line.iteration as i64);
    let mut shown = steps(&curves["validation/loss_after"]);
    // Killed before the first checkpoint, a run says its first line twice.
    shown.dedup();
    assert_eq!(shown, validated.collect::<Vec<_>>());
}
