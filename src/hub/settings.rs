//! What the environment says about fetching: the variables that other programs of the kind read, too.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::{Error, Result};

/// Where to fetch from and to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubSettings {
    /// Folder that holds all fetched models: `HF_HUB_CACHE`, else `hub` in `HF_HOME`, else in `huggingface` of the user's cache folder.
    pub cache: PathBuf,
    /// Server, without a slash at its end: `HF_ENDPOINT`; `None` is the crate's own.
    pub endpoint: Option<String>,
    /// Proves who is asking: `HF_TOKEN`; `None` is what a login has left beside the cache, if anything.
    pub token: Option<String>,
    /// Whether to take what the cache holds and ask nobody: `HF_HUB_OFFLINE`.
    pub offline: bool,
}

impl HubSettings {
    /// Reads the environment.
    ///
    /// # Errors
    /// [`Error::Input`]: there is no home folder to keep a cache in, or a variable that is not text.
    pub fn from_env() -> Result<Self> {
        Self::read(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let text = |name: &str| -> Result<Option<String>> {
            let value = variable(name).map(OsString::into_string).transpose();
            value.map_err(|_| Error::Input(format!("{name}: this is not UTF-8 text")))
        };
        let path = |name: &str| variable(name).map(PathBuf::from);
        let user_cache = || path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")));
        let cache = path("HF_HUB_CACHE")
            .or_else(|| {
                Some(path("HF_HOME").or_else(|| Some(user_cache()?.join("huggingface")))?.join("hub"))
            })
            .ok_or_else(|| Error::Input("there is no home folder to keep models in; set HF_HOME".into()))?;
        let is_yes =
            |value: String| ["1", "true", "yes", "on"].contains(&value.to_ascii_lowercase().as_str());
        Ok(Self {
            cache: std::path::absolute(&cache).map_err(|error| Error::io(&cache, error))?,
            endpoint: text("HF_ENDPOINT")?.map(|endpoint| endpoint.trim_end_matches('/').to_owned()),
            token: text("HF_TOKEN")?.map(|token| token.trim().to_owned()),
            offline: text("HF_HUB_OFFLINE")?.is_some_and(is_yes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<HubSettings> {
        HubSettings::read(|name| {
            variables.iter().find(|(given, _)| *given == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn the_cache_is_where_other_programs_have_it() {
        let mut variables = vec![("HOME", "/home/a")];
        let cache = |variables: &[(&str, &str)]| read(variables).unwrap().cache;
        assert_eq!(cache(&variables), PathBuf::from("/home/a/.cache/huggingface/hub"));
        variables.push(("XDG_CACHE_HOME", "/cache"));
        assert_eq!(cache(&variables), PathBuf::from("/cache/huggingface/hub"));
        variables.push(("HF_HOME", "/models"));
        assert_eq!(cache(&variables), PathBuf::from("/models/hub"));
        variables.push(("HF_HUB_CACHE", "/elsewhere"));
        assert_eq!(cache(&variables), PathBuf::from("/elsewhere"));
        assert!(read(&[]).unwrap_err().to_string().contains("set HF_HOME"));
    }

    #[test]
    fn the_other_variables_are_read() {
        let settings = read(&[
            ("HOME", "/"),
            ("HF_ENDPOINT", "http://127.0.0.1:1/"),
            ("HF_TOKEN", "t\n"),
            ("HF_HUB_OFFLINE", "YES"),
        ]);
        let settings = settings.unwrap();
        assert_eq!(settings.endpoint.as_deref(), Some("http://127.0.0.1:1"));
        assert_eq!((settings.token.as_deref(), settings.offline), (Some("t"), true));
        let settings = read(&[("HOME", "/"), ("HF_HUB_OFFLINE", "0")]).unwrap();
        assert_eq!((settings.endpoint, settings.token, settings.offline), (None, None, false));
    }
}
