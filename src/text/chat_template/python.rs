//! Python's methods where templates expect them. Most are of the crate `minijinja-contrib`; here is what it lacks, and what
//! Python does otherwise: its whitespace has four control characters more than Unicode's, its lines end in nine ways.

use minijinja::value::{Tuple, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

/// A method that the engine does not know itself.
pub fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return pycompat::unknown_method_callback(state, value, name, args);
    };
    Ok(match name {
        "strip" => strip(text, from_args::<(Option<&str>,)>(args)?.0, true, true).into(),
        "lstrip" => strip(text, from_args::<(Option<&str>,)>(args)?.0, true, false).into(),
        "rstrip" => strip(text, from_args::<(Option<&str>,)>(args)?.0, false, true).into(),
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            text.strip_prefix(prefix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            text.strip_suffix(suffix).unwrap_or(text).into()
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            needs_text(separator, "separator")?;
            let (found, missing) = if name == "partition" {
                (text.split_once(separator), [text, "", ""])
            } else {
                (text.rsplit_once(separator), ["", "", text])
            };
            let parts = found.map_or(missing, |(before, after)| [before, separator, after]);
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "split" => {
            let (separator, limit): (Option<&str>, Option<i64>) = from_args(args)?;
            split(text, separator, limit)?
        }
        "rsplit" => {
            let (separator, limit): (Option<&str>, Option<i64>) = from_args(args)?;
            match limit.and_then(|limit| usize::try_from(limit).ok()) {
                None => split(text, separator, None)?,
                Some(limit) => rsplit(text, separator, limit)?,
            }
        }
        "splitlines" => {
            let (keep_ends,): (Option<bool>,) = from_args(args)?;
            lines(text, keep_ends.unwrap_or(false))
        }
        _ => return pycompat::unknown_method_callback(state, value, name, args),
    })
}

/// The filter `trim`, which strips as the method does.
pub fn trim(text: &str, characters: Option<&str>) -> String {
    strip(text, characters, true, true).to_owned()
}

fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

fn strip<'a>(text: &'a str, characters: Option<&str>, start: bool, end: bool) -> &'a str {
    let stripped = |character: char| match characters {
        Some(characters) => characters.contains(character),
        None => is_space(character),
    };
    let text = if start { text.trim_start_matches(stripped) } else { text };
    if end { text.trim_end_matches(stripped) } else { text }
}

fn needs_text(text: &str, what: &str) -> Result<(), Error> {
    if text.is_empty() {
        return Err(Error::new(ErrorKind::InvalidOperation, format!("the {what} is empty")));
    }
    Ok(())
}

fn split(text: &str, separator: Option<&str>, limit: Option<i64>) -> Result<Value, Error> {
    let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    if let Some(separator) = separator {
        needs_text(separator, "separator")?;
        return Ok(text.splitn(limit.saturating_add(1), separator).map(Value::from).collect());
    }
    let (mut rest, mut words) = (text.trim_start_matches(is_space), Vec::new());
    while !rest.is_empty() {
        let end = if words.len() < limit { rest.find(is_space) } else { None };
        let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
        words.push(Value::from(word));
        rest = after.trim_start_matches(is_space);
    }
    Ok(words.into())
}

/// At most `limit` splits, from the end.
fn rsplit(text: &str, separator: Option<&str>, limit: usize) -> Result<Value, Error> {
    let mut words: Vec<Value> = match separator {
        Some(separator) => {
            needs_text(separator, "separator")?;
            text.rsplitn(limit.saturating_add(1), separator).map(Value::from).collect()
        }
        None => {
            let (mut rest, mut words) = (text.trim_end_matches(is_space), Vec::new());
            while !rest.is_empty() {
                let space =
                    if words.len() < limit { rest.char_indices().rfind(|&(_, c)| is_space(c)) } else { None };
                let start = space.map_or(0, |(at, character)| at + character.len_utf8());
                let (before, word) = rest.split_at(start);
                words.push(Value::from(word));
                rest = before.trim_end_matches(is_space);
            }
            words
        }
    };
    words.reverse();
    Ok(words.into())
}

fn lines(text: &str, keep_ends: bool) -> Value {
    let is_end = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let (mut rest, mut lines) = (text, Vec::new());
    while !rest.is_empty() {
        let (line, end) = match rest.char_indices().find(|&(_, c)| is_end(c)) {
            None => (rest.len(), rest.len()),
            Some((at, _)) if rest[at..].starts_with("\r\n") => (at, at + 2),
            Some((at, character)) => (at, at + character.len_utf8()),
        };
        lines.push(Value::from(&rest[..if keep_ends { end } else { line }]));
        rest = &rest[end..];
    }
    lines.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected texts are Python's.
    #[test]
    fn methods_answer_as_pythons_do() {
        let mut environment = minijinja::Environment::new();
        environment.set_unknown_method_callback(method);
        environment.add_filter("trim", trim);
        let text = " \u{1c}a b\u{a0} c\r\nd\u{2028}";
        for (expression, expected) in [
            ("v.strip()", "'a b\\xa0 c\\r\\nd'"),
            ("v|trim", "'a b\\xa0 c\\r\\nd'"),
            ("v.lstrip().rstrip('\u{2028}d')", "'a b\\xa0 c\\r\\n'"),
            ("v.split()", "['a', 'b', 'c', 'd']"),
            ("v.split(none, 1)", "['a', 'b\\xa0 c\\r\\nd\\u2028']"),
            ("v.rsplit(none, 2)", "[' \\x1ca b', 'c', 'd']"),
            ("v.strip().splitlines()", "['a b\\xa0 c', 'd']"),
            ("v.splitlines(true)", "[' \\x1c', 'a b\\xa0 c\\r\\n', 'd\\u2028']"),
            ("'a.b.c'.split('.', 1)", "['a', 'b.c']"),
            ("'a.b.c'.rsplit('.', 1)", "['a.b', 'c']"),
            ("'a.b.c'.split('.', -1)[-1]", "'c'"),
            ("'a.b.c'.partition('.')", "('a', '.', 'b.c')"),
            ("'a.b.c'.rpartition('-')", "('', '', 'a.b.c')"),
            ("'a.b.c'.removeprefix('a.').removesuffix('.c')", "'b'"),
            ("'a b'.title() ~ 'a'.startswith('a')", "'A BTrue'"),
            ("{'a': 1}.get('b', 2)", "2"),
        ] {
            // Python's repr escapes what is not printable; the engine's does not: the texts are compared with both written out.
            let shown = environment
                .compile_expression(expression)
                .unwrap()
                .eval(minijinja::context! { v => text })
                .unwrap();
            let shown: String = format!("{shown:?}")
                .chars()
                .map(|character| match character {
                    '\u{a0}' => "\\xa0".to_owned(),
                    '\u{1c}' => "\\x1c".to_owned(),
                    '\u{2028}' => "\\u2028".to_owned(),
                    other => other.to_string(),
                })
                .collect();
            assert_eq!(shown, expected, "{expression}");
        }
        for expression in ["'a'.split('')", "'a'.partition('')", "'a'.nothing()", "'a'.strip(1)"] {
            assert!(environment.compile_expression(expression).unwrap().eval(()).is_err(), "{expression}");
        }
    }
}
