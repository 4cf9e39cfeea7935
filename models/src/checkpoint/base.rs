//! A pre-trained model in its files: judged by what their headers say, and read a tensor at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{Base, CONFIG_JSON, bare, stored, weights};
use crate::config::ModelConfig;
use crate::digest::BaseHasher;
use crate::error::{FileError, Result};
use crate::families::Stored;
use crate::layout;
use crate::params::{self, HostTensor, Tensors, names};
use crate::safetensors_file::TensorsInPlace;

/// Heads for other tasks than the next token, which a model may bring beside its own: GPT-2's double heads, the classifiers and
/// readers of transformers, the value head of TRL.
const OTHER_HEADS: [&str; 5] = ["multiple_choice_head.", "score.", "classifier.", "qa_outputs.", "v_head."];

/// φ in its files, none of whose tensors is held.
#[derive(Debug)]
pub struct BaseFiles {
    /// Its hyper-parameters.
    pub config: ModelConfig,
    /// As [`Base::notes`].
    pub notes: Vec<String>,
    dir: PathBuf,
    files: Vec<TensorsInPlace>,
    /// Where each tensor of a file is: its file, and its name there, by its name without the prefix.
    there: BTreeMap<String, (usize, String)>,
    /// What each tensor of the table is made of.
    stored: Vec<Stored>,
}

impl BaseFiles {
    /// Opens a model in the Hugging Face layout: `config.json` and `model.safetensors`, whole or in shards (F32, F16 or BF16). Names may
    /// carry the family's prefix or lack it; constants of old files, a tied head equal to the embedding and heads for other tasks are
    /// passed over.
    ///
    /// # Errors
    /// The folder holds something else than a model; a file is missing or wrong; a tensor is missing, left over or has another shape; a
    /// head differs from the embedding that it should be.
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(FileError::new(dir, "is not a folder")
                .remedy("give a Hugging Face model folder with config.json, model.safetensors and a tokenizer"));
        }
        weights::refuse_others(dir)?;
        let config = ModelConfig::from_file(&dir.join(CONFIG_JSON))?;
        let plug = config.family.plug();
        let files = weights::open(dir)?.into_iter().map(|(_, reader)| reader.in_place()).collect::<Result<Vec<_>>>()?;
        let mut passed_over = BTreeSet::new();
        let mut there = BTreeMap::new();
        for (index, file) in files.iter().enumerate() {
            for entry in file.entries() {
                let name = bare(&config, &entry.name);
                let head = OTHER_HEADS.into_iter().find(|head| name.starts_with(head));
                if head.is_some() || plug.is_constant(&name) {
                    passed_over.extend(head);
                } else if there.insert(name.clone(), (index, entry.name.clone())).is_some() {
                    let problem = format!("is there with and without the prefix \"{}\"", plug.prefix());
                    return Err(FileError::new(file.path(), problem).at(name));
                }
            }
        }
        let note = |head| format!("{}: {head}* is passed over: a head for another task", dir.display());
        let notes = passed_over.into_iter().map(note).collect();
        let stored = stored(&config);
        let mut base = Self { config, notes, dir: dir.to_owned(), files, there, stored };
        base.check_headers()?;
        base.tie()?;
        Ok(base)
    }

    /// Reads all of it.
    ///
    /// # Errors
    /// As [`BaseFiles::each`].
    pub fn read(self) -> Result<Base> {
        let mut tensors = Tensors::new();
        self.each(|name, tensor| {
            tensors.insert(name, tensor);
            Ok::<_, FileError>(())
        })?;
        Ok(Base { config: self.config, tensors, notes: self.notes })
    }

    /// Gives the tensors of [`params::base_table`] one after the other, in its order, as f32.
    ///
    /// # Errors
    /// A tensor cannot be read, or holds NaN or infinity; those of `take`.
    pub fn each<E: From<FileError>>(&self, mut take: impl FnMut(String, HostTensor) -> Result<(), E>) -> Result<(), E> {
        for (spec, stored) in params::base_table(&self.config).into_iter().zip(&self.stored) {
            let tensor = layout::gather_one(&spec, stored, |name, _| self.tensor(name))?;
            take(spec.name, tensor)?;
        }
        Ok(())
    }

    /// The digest of φ ([`crate::digest::base_sha256`]).
    ///
    /// # Errors
    /// As [`BaseFiles::each`].
    pub fn sha256(&self) -> Result<String> {
        let mut hasher = BaseHasher::new(&self.config);
        self.each(|name, tensor| {
            hasher.tensor(&name, &tensor);
            Ok::<_, FileError>(())
        })?;
        Ok(hasher.digest())
    }

    /// Reads a tensor of a file.
    fn tensor(&self, name: &str) -> Result<HostTensor> {
        let Some((file, own)) = self.there.get(name).and_then(|(file, own)| Some((self.files.get(*file)?, own))) else {
            return Err(self.wrong(name, "is missing".to_owned()));
        };
        let tensor = file.read(own)?;
        tensor.to_f32().map_err(|problem| FileError::new(file.path(), problem).at(name))
    }

    /// A problem with a tensor, in the file where it is or should be.
    fn wrong(&self, name: &str, problem: String) -> FileError {
        let file = self.there.get(name).and_then(|(file, _)| self.files.get(*file));
        let path = file.map_or_else(|| weights::file(&self.dir), |file| file.path().to_owned());
        FileError::new(&path, problem).at(name)
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        let (file, own) = self.there.get(name)?;
        Some(&self.files.get(*file)?.entry(own)?.shape)
    }

    /// Checks, before a tensor is read, that exactly those of a model are there, each with its shape. A head may be there that turns out
    /// to be the embedding.
    fn check_headers(&self) -> Result<()> {
        let config = &self.config;
        let mut expected = BTreeSet::new();
        for (spec, stored) in params::base_table(config).iter().zip(&self.stored) {
            for (name, columns) in &stored.parts {
                let shape = layout::shape(spec, *columns, stored.transposed);
                match self.shape(name) {
                    // Why a head has to be there is said where it is compared with the embedding.
                    None if name == names::HEAD && !config.family.plug().can_be_untied() => {}
                    None => return Err(self.wrong(name, format!("is missing, expected shape {shape:?}"))),
                    Some(found) if *found != *shape => {
                        return Err(self.wrong(name, format!("has shape {found:?}, expected {shape:?}")));
                    }
                    Some(_) => {}
                }
                expected.insert(name.as_str());
            }
        }
        for name in self.there.keys().filter(|name| !expected.contains(name.as_str())) {
            let shape = [config.vocab_size, config.n_embd];
            match self.shape(name) {
                Some(found) if name == names::HEAD => {
                    if *found != shape {
                        return Err(self.wrong(name, format!("has shape {found:?}, expected {shape:?}")));
                    }
                }
                _ => return Err(self.wrong(name, "does not belong to this model".to_owned())),
            }
        }
        Ok(())
    }

    /// Passes over a head that is the embedding, where it is to be.
    fn tie(&mut self) -> Result<()> {
        if !self.config.tied && self.config.family.plug().can_be_untied() {
            return Ok(());
        }
        // The embedding is the first of the table.
        let embedding = self.stored.first().and_then(|stored| stored.parts.first()).map(|(name, _)| name.clone());
        let embedding = embedding.unwrap_or_default();
        if self.there.contains_key(names::HEAD) {
            if self.tensor(names::HEAD)? != self.tensor(&embedding)? {
                let says = match self.config.tied {
                    true => "config.json does not have tie_word_embeddings false".to_owned(),
                    false => format!("a {} with a head of its own is not supported", self.config.family),
                };
                return Err(self.wrong(names::HEAD, format!("differs from {embedding}, but {says}")));
            }
            if !self.config.tied {
                let dir = self.dir.display();
                let note = format!(
                    "{dir}: {} equals {embedding}, so they are one, although config.json has tie_word_embeddings false",
                    names::HEAD
                );
                self.notes.push(note);
            }
        } else if !self.config.tied {
            let problem = "is missing, but config.json has tie_word_embeddings false".to_owned();
            return Err(self.wrong(names::HEAD, problem));
        }
        self.config.tied = true;
        Ok(())
    }
}
