//! What options are taken from where the command line does not give them: the environment, then a file.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Command, CommandFactory as _};
use marionette_models::{FileError, files};

use crate::args::Cli;

/// The most bytes of the file.
const LARGEST: u64 = 1 << 20;

/// The file: `$MARIONETTE_CONFIG`, or `marionette/config.toml` in `$XDG_CONFIG_HOME` or `~/.config`.
pub fn file() -> Option<PathBuf> {
    if let Some(file) = env::var_os("MARIONETTE_CONFIG") {
        return Some(file.into());
    }
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let config = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")))?;
    Some(config.join("marionette/config.toml"))
}

/// The options that may stand in the file, with the environment's variable of each.
fn variables() -> BTreeMap<String, OsString> {
    fn walk(command: &Command, into: &mut BTreeMap<String, OsString>) {
        let named = command.get_arguments().filter_map(|arg| Some((arg.get_long()?, arg.get_env()?)));
        into.extend(named.map(|(name, variable)| (name.to_owned(), variable.to_owned())));
        command.get_subcommands().for_each(|command| walk(command, into));
    }
    let mut all = BTreeMap::new();
    walk(&Cli::command(), &mut all);
    all
}

/// The variables that the file sets where the environment has them not. A file that was not named may be missing.
///
/// # Errors
/// The file cannot be read, or something in it is no option.
pub fn of_file() -> Result<Vec<(OsString, String)>, FileError> {
    let Some(path) = file() else { return Ok(Vec::new()) };
    if !path.exists() && env::var_os("MARIONETTE_CONFIG").is_none() {
        return Ok(Vec::new());
    }
    let bytes = files::read_limited(&path, LARGEST)?;
    let text = String::from_utf8(bytes).map_err(|_| FileError::new(&path, "is not UTF-8"))?;
    let table: toml::Table =
        text.parse().map_err(|error: toml::de::Error| FileError::new(&path, error.message().to_owned()))?;
    let variables = variables();
    let mut set = Vec::new();
    for (name, value) in table {
        let Some(variable) = variables.get(&name) else {
            let known = variables.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            return Err(FileError::new(&path, format!("is no option of a file, expected one of {known}")).at(name));
        };
        let value = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Float(number) => number.to_string(),
            toml::Value::Boolean(is_true) => is_true.to_string(),
            _ => return Err(FileError::new(&path, "expected a text, a number, true or false").at(name)),
        };
        if env::var_os(variable).is_none() {
            set.push((variable.clone(), value));
        }
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_with_a_variable_are_named_after_it() {
        let variables = variables();
        assert!(variables.len() >= 10, "{variables:?}");
        for (name, variable) in variables {
            let expected = format!("MARIONETTE_{}", name.to_uppercase().replace('-', "_"));
            assert_eq!(variable.to_string_lossy(), expected);
        }
    }
}
