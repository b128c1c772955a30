//! `{% generation %}`, the one tag of transformers' own: it marks what the assistant says for training and prints its body.

use std::borrow::Cow;

/// `source` with `generation` blocks as `with` blocks, which print their body and keep its variables to themselves, too. Text,
/// comments, expressions, strings and raw blocks stay as they are.
pub fn without_generation(source: &str) -> Cow<'_, str> {
    if !source.contains("generation") {
        return Cow::Borrowed(source);
    }
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        let (text, tag) = rest.split_at(at);
        out.push_str(text);
        let length = match tag.as_bytes().get(1) {
            Some(b'#') => tag.find("#}").map_or(tag.len(), |end| end + 2),
            Some(b'{') => end_of(tag, "}}"),
            Some(b'%') => {
                let name_at = tag.len() - tag[2..].trim_start_matches(['-', '+']).trim_start().len();
                let name = tag[name_at..]
                    .split(|c: char| !c.is_alphanumeric() && c != '_')
                    .next()
                    .unwrap_or_default();
                let replacement = match name {
                    "generation" => Some("with"),
                    "endgeneration" => Some("endwith"),
                    _ => None,
                };
                if let Some(replacement) = replacement {
                    out.push_str(&tag[..name_at]);
                    out.push_str(replacement);
                    rest = &tag[name_at + name.len()..];
                    continue;
                }
                let end = end_of(tag, "%}");
                if name == "raw" { end_of_raw(tag, end) } else { end }
            }
            _ => 1,
        };
        out.push_str(&tag[..length]);
        rest = &tag[length..];
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Length of the tag that `tag` begins with, up to `close` outside strings.
fn end_of(tag: &str, close: &str) -> usize {
    let mut quote = None;
    let mut characters = tag.char_indices().skip(2);
    while let Some((at, character)) = characters.next() {
        match quote {
            Some(_) if character == '\\' => drop(characters.next()),
            Some(open) if character == open => quote = None,
            Some(_) => (),
            None if tag[at..].starts_with(close) => return at + close.len(),
            None if matches!(character, '"' | '\'') => quote = Some(character),
            None => (),
        }
    }
    tag.len()
}

/// Where the `endraw` begins that ends the raw block of `tag`, whose own tag ends at `from`.
fn end_of_raw(tag: &str, from: usize) -> usize {
    let mut at = from;
    while let Some(found) = tag[at..].find("{%") {
        at += found;
        if tag[at + 2..].trim_start_matches(['-', '+']).trim_start().starts_with("endraw") {
            return at;
        }
        at += 2;
    }
    tag.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_tag_is_replaced() {
        for (source, expected) in [
            ("{% generation %}a{% endgeneration %}", "{% with %}a{% endwith %}"),
            ("{%- generation -%}a{%-endgeneration-%}", "{%- with -%}a{%-endwith-%}"),
            (
                "generation {{ generation }} {# {% generation %} #}",
                "generation {{ generation }} {# {% generation %} #}",
            ),
            (
                "{{ '{% generation %}' }}{{ \"\\\"}}{% generation %}\" }}",
                "{{ '{% generation %}' }}{{ \"\\\"}}{% generation %}\" }}",
            ),
            (
                "{% raw %}{% generation %}{%- endraw %}{% generation %}",
                "{% raw %}{% generation %}{%- endraw %}{% with %}",
            ),
            ("{% if '%}' %}{% generation %}", "{% if '%}' %}{% with %}"),
            (
                "{% generations %}{% add_generation %}{{% generation",
                "{% generations %}{% add_generation %}{{% generation",
            ),
            ("{", "{"),
            ("é{% generation %}é{%", "é{% with %}é{%"),
        ] {
            assert_eq!(without_generation(source), expected);
        }
    }
}
