//! The name of a repository.

use std::fmt;

/// A model's repository, and which of its revisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    id: String,
    revision: String,
}

/// The revision that is taken if none is named.
const MAIN: &str = "main";
/// Longest half of an id, and longest revision.
const MAX_BYTES: usize = 96;

impl Repository {
    /// Reads `org/name` or `org/name@revision`; `None` if it is neither.
    pub fn parse(text: &str) -> Option<Self> {
        let (id, revision) = text.split_once('@').unwrap_or((text, MAIN));
        let (organisation, name) = id.split_once('/')?;
        let is_revision = revision.len() <= MAX_BYTES && revision.split('/').all(is_name);
        (is_name(organisation) && is_name(name) && is_revision)
            .then(|| Self { id: id.to_owned(), revision: revision.to_owned() })
    }

    /// `org/name`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A branch, tag or commit.
    pub fn revision(&self) -> &str {
        &self.revision
    }
}

/// Whether `text` can be a part of an address and of a path: no way up, no hidden file, no flag.
fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=MAX_BYTES).contains(&text.len())
        && text.bytes().all(plain)
        && !text.starts_with(['.', '-'])
        && !text.contains("..")
        && !text.ends_with('.')
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.revision.as_str() {
            MAIN => f.write_str(&self.id),
            revision => write!(f, "{}@{revision}", self.id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_two_names_and_perhaps_a_revision() {
        for (text, id, revision) in [
            ("org/name", "org/name", "main"),
            ("a-b_c.d/Name-8B.v0", "a-b_c.d/Name-8B.v0", "main"),
            ("org/name@v1.0", "org/name", "v1.0"),
            ("org/name@refs/pr/3", "org/name", "refs/pr/3"),
        ] {
            let repository = Repository::parse(text).expect(text);
            assert_eq!((repository.id(), repository.revision()), (id, revision));
            assert_eq!(repository.to_string(), text);
        }
    }

    #[test]
    fn paths_are_no_ids() {
        let long = format!("a/{}", "b".repeat(97));
        for text in [
            "", "name", "/a/b", "a/b/c", "./a", "../a", "a/..", "a/.b", "a/b..c", "~/a", "a/b@", "a/b@../c",
            "a/b@/c", "a b/c", "a/b?c", "a/é", "a//b", "-a/b", &long, "/", "@", "a/b.",
        ] {
            assert_eq!(Repository::parse(text), None, "{text:?}");
        }
    }
}
