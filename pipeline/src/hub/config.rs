//! Where the Hub is, who asks, and where its files may already lie: Hugging Face's conventions.
//!
//! | variable | meaning | else |
//! |---|---|---|
//! | `HF_ENDPOINT` | the Hub or a mirror of it | `https://huggingface.co` |
//! | `HF_TOKEN`, then the file `HF_TOKEN_PATH` | access token | the file `$HF_HOME/token` |
//! | `HF_HUB_DISABLE_IMPLICIT_TOKEN` | use no token found in a file | |
//! | `HF_HOME` | folder of the two below | `$XDG_CACHE_HOME/huggingface`, `~/.cache/huggingface` |
//! | `HF_HUB_CACHE` (`HUGGINGFACE_HUB_CACHE`) | shared cache, only read here | `$HF_HOME/hub` |
//! | `HF_HUB_OFFLINE` | never touch the network | |
//! | `HF_HUB_DOWNLOAD_TIMEOUT` | seconds without a byte after which a connection is given up | 30 |
//! | `XLSTM_HUB_RETRY_DELAY` | seconds before the first retry; ours, no convention | 1 |

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use xlstm_manifests::printable;

use super::error::HubError;
use super::retry::RetryPolicy;

/// The Hub when nothing else is said.
const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// An access token. Neither `Debug` nor `Display` shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Wraps `secret`, trimmed; `None` when nothing is left.
    ///
    /// # Errors
    /// [`HubError::Setting`] when it holds what no token has (spaces, control characters, non-ASCII).
    pub fn new(secret: &str) -> Result<Option<Self>, HubError> {
        let secret = secret.trim();
        if secret.is_empty() {
            return Ok(None);
        }
        if !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(HubError::Setting {
                setting: "HF_TOKEN (or the token file)",
                found: "(not shown)".into(),
                reason: "expected one word of printable ASCII characters, such as hf_…".into(),
            });
        }
        // Whatever repeats it, nothing that is printed shows it.
        printable::keep_secret(secret);
        Ok(Some(Self(secret.to_owned())))
    }

    /// The secret, for the `Authorization` header only.
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(not shown)")
    }
}

impl fmt::Display for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("(not shown)")
    }
}

/// What a [`super::Hub`] is made of.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// Address of the Hub, without a slash at its end.
    pub endpoint: String,
    /// Who asks; `None` asks anonymously.
    pub token: Option<Token>,
    /// A Hugging Face cache to look for blobs in (it is only read); `None` looks nowhere.
    pub hf_cache: Option<PathBuf>,
    /// Folder where listings are kept.
    pub listing_cache: PathBuf,
    /// How failures are met.
    pub retry: RetryPolicy,
    /// A connection that brings no byte for this long is closed, and the download continues over another.
    pub stall_timeout: Duration,
    /// Refuse all use of the network.
    pub offline: bool,
}

impl HubConfig {
    /// Settings for `endpoint`, anonymous, with no Hugging Face cache.
    #[must_use]
    pub fn new(endpoint: impl Into<String>, listing_cache: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: endpoint.into(),
            token: None,
            hf_cache: None,
            listing_cache: listing_cache.into(),
            retry: RetryPolicy::default(),
            stall_timeout: Duration::from_secs(30),
            offline: false,
        }
    }

    /// Settings from the process's environment.
    ///
    /// # Errors
    /// [`HubError::Setting`] when a variable cannot be used or no home folder is known; [`HubError::Disk`] when
    /// the file `HF_TOKEN_PATH` cannot be read.
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_lookup(&|name| match name {
            // Falls back on the user database where HOME is unset.
            "HOME" => std::env::home_dir().map(PathBuf::into_os_string),
            _ => std::env::var_os(name),
        })
    }

    /// Settings from `lookup`, a stand-in for the environment. Empty values count as unset.
    ///
    /// # Errors
    /// As [`HubConfig::from_env`].
    pub fn from_lookup(lookup: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, HubError> {
        let get = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let folder = |name: &str| get(name).map(PathBuf::from);
        let flag = |name: &str| {
            get(name).is_some_and(|value| {
                matches!(value.to_string_lossy().to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on")
            })
        };
        let cache_home = folder("XDG_CACHE_HOME")
            .or_else(|| folder("HOME").map(|home| home.join(".cache")))
            .ok_or_else(|| HubError::Setting {
                setting: "HOME",
                found: String::new(),
                reason: "expected a home folder for caches; set HOME or XDG_CACHE_HOME".into(),
            })?;
        let hf_home = folder("HF_HOME").unwrap_or_else(|| cache_home.join("huggingface"));
        let hf_cache = folder("HF_HUB_CACHE")
            .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
            .unwrap_or_else(|| hf_home.join("hub"));
        let token = match (get("HF_TOKEN"), folder("HF_TOKEN_PATH")) {
            (Some(token), _) => Token::new(&token.to_string_lossy())?,
            (None, _) if flag("HF_HUB_DISABLE_IMPLICIT_TOKEN") => None,
            (None, Some(path)) => {
                let text =
                    fs_err::read_to_string(&path).map_err(HubError::disk("read HF_TOKEN_PATH", &path))?;
                Token::new(&text)?
            }
            // The token file's place beside the cache is hf-hub's knowledge.
            (None, None) => match hf_hub::Cache::new(hf_home.join("hub")).token() {
                Some(token) => Token::new(&token)?,
                None => None,
            },
        };
        let endpoint = match get("HF_ENDPOINT") {
            Some(endpoint) => endpoint.to_string_lossy().trim_end_matches('/').to_owned(),
            None => DEFAULT_ENDPOINT.to_owned(),
        };
        let mut config = Self::new(endpoint, cache_home.join("xlstm-data").join("listings"));
        config.token = token;
        config.hf_cache = Some(hf_cache);
        config.offline = flag("HF_HUB_OFFLINE");
        if let Some(timeout) = seconds("HF_HUB_DOWNLOAD_TIMEOUT", get("HF_HUB_DOWNLOAD_TIMEOUT"))? {
            config.stall_timeout = timeout;
        }
        if let Some(delay) = seconds("XLSTM_HUB_RETRY_DELAY", get("XLSTM_HUB_RETRY_DELAY"))? {
            config.retry.first_delay = delay;
        }
        Ok(config)
    }
}

/// A positive number of seconds, fractions allowed.
fn seconds(setting: &'static str, value: Option<OsString>) -> Result<Option<Duration>, HubError> {
    let Some(value) = value else { return Ok(None) };
    let found = value.to_string_lossy().into_owned();
    match found.trim().parse::<f64>().ok().filter(|&seconds| seconds > 0.0) {
        Some(seconds) if seconds <= 86_400.0 => Ok(Some(Duration::from_secs_f64(seconds))),
        _ => Err(HubError::Setting {
            setting,
            found,
            reason: "expected a number of seconds above 0 and up to 86400".into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(variables: &[(&str, &str)]) -> Result<HubConfig, HubError> {
        HubConfig::from_lookup(&|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn conventions_are_hugging_faces() {
        let plain = from(&[("HOME", "/nowhere/h")]).unwrap();
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert_eq!(plain.hf_cache.unwrap(), PathBuf::from("/nowhere/h/.cache/huggingface/hub"));
        assert!(plain.token.is_none());
        let moved = from(&[("HOME", "/nowhere/h"), ("XDG_CACHE_HOME", "/nowhere/x")]).unwrap();
        assert_eq!(moved.hf_cache.unwrap(), PathBuf::from("/nowhere/x/huggingface/hub"));
        let named = from(&[
            ("XDG_CACHE_HOME", "/nowhere/x"),
            ("HF_HUB_CACHE", "/nowhere/blobs"),
            ("HF_ENDPOINT", "http://mirror.example/"),
            ("HF_HUB_OFFLINE", "1"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "2.5"),
            ("XLSTM_HUB_RETRY_DELAY", "0.01"),
        ])
        .unwrap();
        assert_eq!(named.stall_timeout, Duration::from_millis(2500));
        assert_eq!(named.retry.first_delay, Duration::from_millis(10));
        assert_eq!(named.hf_cache.unwrap(), PathBuf::from("/nowhere/blobs"));
        assert_eq!(named.endpoint, "http://mirror.example");
        assert!(named.offline);
        assert!(matches!(from(&[]), Err(HubError::Setting { setting: "HOME", .. })));
        for bad in ["0", "-1", "soon", "NaN", "inf"] {
            let error = from(&[("HOME", "/nowhere"), ("XLSTM_HUB_RETRY_DELAY", bad)]).unwrap_err();
            assert!(matches!(error, HubError::Setting { setting: "XLSTM_HUB_RETRY_DELAY", .. }), "{error}");
        }
    }

    #[test]
    fn the_token_comes_from_the_first_place_that_has_one_and_is_never_shown() {
        let home = tempfile::tempdir().unwrap();
        let hf_home = home.path().to_str().unwrap();
        let token = |variables: &[(&str, &str)]| {
            let mut all = vec![("HOME", "/nowhere"), ("HF_HOME", hf_home)];
            all.extend(variables);
            from(&all).map(|config| config.token.map(|token| token.expose().to_owned()))
        };
        assert_eq!(token(&[]).unwrap(), None);
        fs_err::write(home.path().join("token"), "hf_file\n").unwrap();
        assert_eq!(token(&[]).unwrap().as_deref(), Some("hf_file"));
        assert_eq!(token(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).unwrap(), None);
        fs_err::write(home.path().join("other"), "hf_other").unwrap();
        let other = home.path().join("other");
        let other = other.to_str().unwrap();
        assert_eq!(token(&[("HF_TOKEN_PATH", other)]).unwrap().as_deref(), Some("hf_other"));
        let both = token(&[("HF_TOKEN_PATH", other), ("HF_TOKEN", " hf_variable ")]);
        assert_eq!(both.unwrap().as_deref(), Some("hf_variable"));
        assert!(matches!(token(&[("HF_TOKEN_PATH", "/nowhere/t")]), Err(HubError::Disk { .. })));

        let config = from(&[("HOME", "/nowhere"), ("HF_TOKEN", "hf_secret")]).unwrap();
        let shown = format!("{config:?} {}", config.token.as_ref().unwrap());
        assert!(!shown.contains("hf_secret"), "{shown}");
        let refused = from(&[("HOME", "/nowhere"), ("HF_TOKEN", "hf_se cret")]).unwrap_err().to_string();
        assert!(!refused.contains("cret"), "{refused}");
    }
}
