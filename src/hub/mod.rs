//! Models by repository id: fetched once into the cache that other programs share, found there ever after.
//!
//! The crate `hf-hub` fetches, resumes, locks and lays the cache out. Around it is what it leaves open: which files a model
//! needs, the environment (`HF_HUB_CACHE`, `HF_TOKEN`, `HF_HUB_OFFLINE`), a cached model while the network is down, whether a file is
//! complete, and its errors as sentences.
#![forbid(unsafe_code)]

mod files;
mod repository;
mod settings;

use std::fs;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::api::{Progress, RepoInfo};
use hf_hub::{Cache, Repo, RepoType};

use crate::fence::fenced;
use crate::{Error, Result};

pub use repository::Repository;
pub use settings::HubSettings;

/// Called while files arrive: the file, bytes done, bytes in all.
pub type FetchProgress<'a> = &'a mut dyn FnMut(&str, u64, u64);

impl HubSettings {
    /// The folder of `repository`'s files: configs, tokenizer, chat template and weights (safetensors if there are any, else PyTorch's).
    /// The server is asked which commit the revision is at; files of that commit that are not in the cache are fetched. While the
    /// server cannot be reached, or if `offline`, what the cache holds is taken.
    ///
    /// # Errors
    /// [`Error::Input`]: no such repository or revision, no access to it, no weights in it, or offline without it in the cache.
    /// [`Error::Io`]: the cache cannot be written. [`Error::Download`]: no connection, a server's failure, or a file that ended early.
    pub fn fetch(&self, repository: &Repository, progress: FetchProgress<'_>) -> Result<PathBuf> {
        let cache = Cache::new(self.cache.clone());
        if self.offline {
            return self.cached(&cache, repository).ok_or_else(|| {
                Error::Input(format!(
                    "{repository}: HF_HUB_OFFLINE is set, and neither a folder of that name nor the cache {} has this model whole",
                    self.cache.display()
                ))
            });
        }
        let api = self.api(&cache).map_err(|error| self.sentence(repository, &error))?;
        let info = match call(repository, || api.repo(repository.at(repository.revision())).info())? {
            Ok(info) => info,
            Err(error) => {
                if is_unreachable(&error)
                    && let Some(folder) = self.cached(&cache, repository)
                {
                    tracing::warn!(
                        "{repository}: the server cannot be asked for news ({error}); the cached files are taken"
                    );
                    return Ok(folder);
                }
                return Err(self.sentence(repository, &error));
            }
        };
        if !is_commit(&info.sha) {
            return Err(Error::Download(format!(
                "{repository}: the server answers with something that is no commit"
            )));
        }
        let folder = cache.repo(repository.at(&info.sha)).pointer_path(&info.sha);
        let commit =
            Commit { settings: self, repository, api: api.repo(repository.at(&info.sha)), folder: &folder };
        commit.fetch_all(&info, progress)?;
        // Written last: a revision that the cache knows is whole.
        cache
            .repo(repository.at(repository.revision()))
            .create_ref(&info.sha)
            .map_err(|error| Error::io(&self.cache, error))?;
        Ok(folder)
    }

    fn api(&self, cache: &Cache) -> std::result::Result<Api, ApiError> {
        let mut builder = ApiBuilder::from_cache(cache.clone()).with_progress(false);
        if let Some(token) = &self.token {
            builder = builder.with_token(Some(token.clone()));
        }
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        builder.build()
    }

    /// The folder of the cache that holds all of the revision, if one does.
    fn cached(&self, cache: &Cache, repository: &Repository) -> Option<PathBuf> {
        let revision = repository.revision();
        let config = cache.repo(repository.at(revision)).get("config.json");
        let folder = match config {
            Some(config) => config.parent()?.to_owned(),
            // A revision may be a commit.
            None if is_commit(revision) => cache.repo(repository.at(revision)).pointer_path(revision),
            None => return None,
        };
        let names: Vec<String> = fs::read_dir(&folder)
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        let weights = files::weights(&names)?;
        let shards = match &weights.index {
            Some(index) => files::shards(&fs::read(folder.join(index)).ok()?).ok()?,
            None => weights.files,
        };
        (names.iter().any(|name| name == "config.json")
            && shards.iter().all(|file| folder.join(file).exists()))
        .then_some(folder)
    }

    /// What `error` means to who asked for `repository`.
    fn sentence(&self, repository: &Repository, error: &ApiError) -> Error {
        let endpoint = || self.endpoint.as_ref().map_or(String::new(), |endpoint| format!(" at {endpoint}"));
        match status(error) {
            Some(404) => Error::Input(format!(
                "{repository}: there is no such folder here, and no such repository or revision{}; check the name",
                endpoint()
            )),
            Some(code @ (401 | 403)) => Error::Input(format!(
                "{repository}: access is denied ({code}): the repository is gated or private, or there is none of that name; \
                 if you have been granted access, set HF_TOKEN"
            )),
            Some(code) => Error::Download(format!(
                "{repository}: the server{} failed (status {code}); try again later",
                endpoint()
            )),
            None => match error {
                ApiError::IoError(source) if is_of_disk(source) => {
                    Error::io(&self.cache, std::io::Error::new(source.kind(), source.to_string()))
                }
                ApiError::LockAcquisition(path) => Error::Download(format!(
                    "{repository}: another program is fetching it ({} is locked); wait for it to end",
                    path.display()
                )),
                _ => Error::Download(format!(
                    "{repository}: there is no such folder here, and it cannot be fetched{}: {}",
                    endpoint(),
                    one_line(&error.to_string())
                )),
            },
        }
    }
}

/// A commit of a repository, being fetched.
struct Commit<'a> {
    settings: &'a HubSettings,
    repository: &'a Repository,
    api: ApiRepo,
    /// Where its files go.
    folder: &'a Path,
}

impl Commit<'_> {
    fn fetch_all(&self, info: &RepoInfo, progress: FetchProgress<'_>) -> Result<()> {
        let names: Vec<String> = info.siblings.iter().map(|file| file.rfilename.clone()).collect();
        let Some(weights) = files::weights(&names) else {
            return Err(Error::Input(format!(
                "{}: this repository has no model.safetensors, pytorch_model.bin or medusa_lm_head.pt",
                self.repository
            )));
        };
        for name in names.iter().filter(|name| files::is_small(name)) {
            self.fetch_one(name, progress)?;
        }
        let shards = match &weights.index {
            None => weights.files,
            Some(index) => {
                self.fetch_one(index, progress)?;
                let path = self.folder.join(index);
                let content = fs::read(&path).map_err(|error| Error::io(&path, error))?;
                files::shards(&content).map_err(|reason| Error::format(&path, reason))?
            }
        };
        shards.iter().try_for_each(|name| self.fetch_one(name, progress))
    }

    fn fetch_one(&self, name: &str, progress: FetchProgress<'_>) -> Result<()> {
        let path = self.folder.join(name);
        if path.exists() {
            return Ok(());
        }
        let mut bytes = 0;
        let bar = Bar { name, done: 0, bytes: &mut bytes, progress };
        let fetched = call(self.repository, || self.api.download_with_progress(name, bar))?;
        fetched.map_err(|error| match self.settings.sentence(self.repository, &error) {
            Error::Download(reason) => Error::Download(format!("{name}: {reason}")),
            other => other,
        })?;
        let length = fs::metadata(&path).map_err(|error| Error::io(&path, error))?.len();
        if length != bytes {
            // The next run fetches it anew.
            let blob = fs::canonicalize(&path);
            let removed = fs::remove_file(&path).and(blob).and_then(fs::remove_file);
            removed.map_err(|error| Error::io(&path, error))?;
            return Err(Error::Download(format!(
                "{}: {name} ended after {length} of {bytes} bytes; try again",
                self.repository
            )));
        }
        Ok(())
    }
}

/// Passes on how far a file is.
struct Bar<'a> {
    name: &'a str,
    done: u64,
    bytes: &'a mut u64,
    progress: FetchProgress<'a>,
}

impl Progress for Bar<'_> {
    fn init(&mut self, size: usize, _: &str) {
        *self.bytes = size as u64;
        self.done = 0;
        (self.progress)(self.name, 0, *self.bytes);
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        (self.progress)(self.name, self.done, *self.bytes);
    }

    fn finish(&mut self) {
        (self.progress)(self.name, *self.bytes, *self.bytes);
    }
}

/// Calls the crate, which panics where a server's answer is not as it should be.
fn call<T>(repository: &Repository, call: impl FnOnce() -> T) -> Result<T> {
    fenced(call).ok_or_else(|| Error::Download(format!("{repository}: the server's answers make no sense")))
}

/// The status that the server has answered with, if it is one of failure.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match &**error {
            ureq::Error::StatusCode(code) => Some(*code),
            _ => None,
        },
        ApiError::TooManyRetries(error) => status(error),
        _ => None,
    }
}

/// Whether there was no answer at all.
fn is_unreachable(error: &ApiError) -> bool {
    matches!(error, ApiError::RequestError(_) | ApiError::IoError(_))
        && status(error).is_none_or(|code| code >= 500)
}

/// Whether it is the disk that failed, not the network, whose errors come as the same type.
fn is_of_disk(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{
        AlreadyExists, IsADirectory, NotADirectory, NotFound, PermissionDenied, QuotaExceeded,
        ReadOnlyFilesystem, StorageFull,
    };
    matches!(
        error.kind(),
        AlreadyExists
            | IsADirectory
            | NotADirectory
            | NotFound
            | PermissionDenied
            | QuotaExceeded
            | ReadOnlyFilesystem
            | StorageFull
    )
}

fn is_commit(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl Repository {
    fn at(&self, revision: &str) -> Repo {
        Repo::with_revision(self.id().to_owned(), RepoType::Model, revision.to_owned())
    }
}
