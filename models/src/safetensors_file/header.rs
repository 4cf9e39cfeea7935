//! The header of a safetensors file: JSON that says of every tensor its type, shape and place, and what else is said of the file.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::fmt;
use std::marker::PhantomData;

use safetensors::Dtype;
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A header of more bytes is refused: that of a model of 10,000 tensors has a megabyte.
pub(crate) const MAX_HEADER: u64 = 25_000_000;
/// A JSON object of more entries is refused, and so is a model of more tensors: the largest have some 10,000.
pub(crate) const MAX_ENTRIES: usize = 100_000;
/// A tensor of more dimensions is refused.
const MAX_DIMENSIONS: usize = 32;
/// The key of the header that names no tensor.
const METADATA: &str = "__metadata__";

/// What a header says of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its type.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// How many bytes it takes.
    pub bytes: usize,
}

/// A header whose tensors lie without gaps, one after the other.
pub(super) struct Header {
    /// In the order of the file; tensors without values at one place by name.
    pub(super) entries: Vec<Entry>,
    /// What is said of the file, in the order of the keys.
    pub(super) metadata: BTreeMap<String, String>,
}

/// A tensor in the JSON of a header, with the fields in the order of the `safetensors` crate.
#[derive(Serialize, Deserialize)]
struct Info {
    dtype: Dtype,
    #[serde(deserialize_with = "dimensions")]
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl Header {
    /// Parses the JSON and checks that types, shapes and places agree.
    ///
    /// # Errors
    /// What is wrong, with the tensor where there is one.
    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        let Parsed { tensors, metadata } = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let mut tensors: Vec<(String, Info)> = tensors.into_iter().collect();
        // Stable: what shares its place stays in the order of the names.
        tensors.sort_by_key(|(_, info)| info.data_offsets);
        let mut end = 0;
        let mut entries = Vec::with_capacity(tensors.len());
        for (name, Info { dtype, shape, data_offsets: (first, last) }) in tensors {
            if first != end || last < first {
                return Err(format!("{name}: lies at {first} to {last}, expected to begin at {end}"));
            }
            match bytes_of(dtype, &shape) {
                Some(bytes) if bytes == last - first => entries.push(Entry { name, dtype, shape, bytes }),
                _ => {
                    let bytes = last - first;
                    return Err(format!("{name}: takes {bytes} bytes, which is not {dtype:?} of shape {shape:?}"));
                }
            }
            end = last;
        }
        Ok(Self { entries, metadata })
    }

    /// The number of bytes that all tensors take.
    pub(super) fn data_bytes(&self) -> u64 {
        // Places are contiguous and were checked, so the sum is the last one's end.
        self.entries.iter().map(|entry| entry.bytes as u64).sum()
    }

    /// All that lies before the tensors: the length of the JSON, and the JSON, filled up with spaces to a multiple of 8. As the
    /// `safetensors` crate writes it, but for metadata in the order of the keys.
    ///
    /// # Errors
    /// What serialising says.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, String> {
        let mut json = serde_json::to_vec(self).map_err(|error| error.to_string())?;
        json.resize(json.len().next_multiple_of(8), b' ');
        let length = json.len() as u64;
        Ok([length.to_le_bytes().to_vec(), json].concat())
    }
}

impl Serialize for Header {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry(METADATA, &self.metadata)?;
        let mut first = 0;
        for entry in &self.entries {
            let last = first + entry.bytes;
            let info = Info { dtype: entry.dtype, shape: entry.shape.clone(), data_offsets: (first, last) };
            map.serialize_entry(&entry.name, &info)?;
            first = last;
        }
        map.end()
    }
}

/// How many bytes a tensor takes; none where that is no whole number or overflows.
pub(super) fn bytes_of(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    let values = shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size))?;
    let bits = values.checked_mul(dtype.bitsize())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// The JSON of a header, of which every key is there once and of which there are not too many.
struct Parsed {
    tensors: BTreeMap<String, Info>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for Parsed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Parsed;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parsed, A::Error> {
                let (mut tensors, mut metadata) = (BTreeMap::new(), None);
                while let Some(key) = map.next_key::<String>()? {
                    if key != METADATA {
                        insert_once(&mut tensors, key, &mut map)?;
                    } else if metadata.is_none() {
                        let Unique(entries) = map.next_value()?;
                        metadata = Some(entries);
                    } else {
                        return Err(twice(METADATA));
                    }
                }
                Ok(Parsed { tensors, metadata: metadata.unwrap_or_default() })
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}

/// A JSON object of which every key is there once, and of which there are at most [`MAX_ENTRIES`]: it is given up at the first one
/// too many.
pub(crate) struct Unique<T>(pub(crate) BTreeMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = Unique<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique<T>, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    insert_once(&mut entries, key, &mut map)?;
                }
                Ok(Unique(entries))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

/// Takes the value of a key that is not there yet.
fn insert_once<'de, T: Deserialize<'de>, A: MapAccess<'de>>(
    entries: &mut BTreeMap<String, T>,
    key: String,
    map: &mut A,
) -> Result<(), A::Error> {
    if entries.len() == MAX_ENTRIES {
        return Err(A::Error::custom(format!("an object has more than {MAX_ENTRIES} entries")));
    }
    match entries.entry(key) {
        Slot::Occupied(slot) => Err(twice(slot.key())),
        Slot::Vacant(slot) => {
            slot.insert(map.next_value()?);
            Ok(())
        }
    }
}

fn twice<E: Error>(key: &str) -> E {
    E::custom(format!("the key \"{}\" is there twice", key.escape_default()))
}

/// A shape, given up at the first dimension too many.
fn dimensions<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<usize>, D::Error> {
    struct Dimensions;
    impl<'de> Visitor<'de> for Dimensions {
        type Value = Vec<usize>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a shape")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<usize>, A::Error> {
            let mut shape = Vec::new();
            while let Some(size) = items.next_element()? {
                if shape.len() == MAX_DIMENSIONS {
                    return Err(A::Error::custom(format!("a shape has more than {MAX_DIMENSIONS} dimensions")));
                }
                shape.push(size);
            }
            Ok(shape)
        }
    }
    deserializer.deserialize_seq(Dimensions)
}
