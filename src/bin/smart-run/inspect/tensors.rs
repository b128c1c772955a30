//! Lists of tensors, short: those that differ in a number of their name only are one line.

use std::collections::HashMap;

use smart_run::weights::TensorInfo;

/// Tensors of one shape and type whose names differ in numbers.
struct Group {
    /// The name, split at dots; a number may have become a set, as in `{0..31}`.
    parts: Vec<String>,
    /// ` [4096, 4096] bf16`.
    kind: String,
}

/// `tensors` as lines such as `model.layers.{0..31}.mlp.up_proj.weight [14336, 4096] bf16`, in order of first appearance.
pub fn grouped<'a>(tensors: impl Iterator<Item = TensorInfo<'a>>) -> Vec<String> {
    let mut groups: Vec<Group> = tensors
        .map(|tensor| Group {
            parts: tensor.name.split('.').map(String::from).collect(),
            kind: format!(" {:?} {}", tensor.shape, dtype_name(tensor)),
        })
        .collect();
    let longest = groups.iter().map(|group| group.parts.len()).max().unwrap_or(0);
    for place in 0..longest {
        groups = merged(groups, place);
    }
    groups.into_iter().map(|group| group.parts.join(".") + &group.kind).collect()
}

/// The element type in lower case, as in flags.
pub fn dtype_name(tensor: TensorInfo) -> String {
    format!("{:?}", tensor.dtype).to_lowercase()
}

/// `groups` with those made one that differ only in the number at `place`.
fn merged(groups: Vec<Group>, place: usize) -> Vec<Group> {
    let mut out: Vec<(Group, Vec<u64>)> = Vec::new();
    let mut seen: HashMap<(Vec<String>, String), usize> = HashMap::new();
    for mut group in groups {
        // A number that its own text says otherwise (007) is a name.
        let number = group.parts.get(place).and_then(|part| {
            let number: u64 = part.parse().ok()?;
            (number.to_string() == *part).then_some(number)
        });
        let Some(number) = number else {
            out.push((group, Vec::new()));
            continue;
        };
        group.parts[place].clear();
        let at = *seen.entry((group.parts.clone(), group.kind.clone())).or_insert(out.len());
        if at == out.len() {
            out.push((group, Vec::new()));
        }
        out[at].1.push(number);
    }
    let name = |(mut group, numbers): (Group, Vec<u64>)| {
        if !numbers.is_empty() {
            group.parts[place] = set(numbers);
        }
        group
    };
    out.into_iter().map(name).collect()
}

/// Numbers as `7` or `{0..3,5,7..31}`.
fn set(mut numbers: Vec<u64>) -> String {
    numbers.sort_unstable();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let run = |&(first, last): &(u64, u64)| match last - first {
        0 => first.to_string(),
        _ => format!("{first}..{last}"),
    };
    match runs.as_slice() {
        [(first, last)] if first == last => first.to_string(),
        runs => format!("{{{}}}", runs.iter().map(run).collect::<Vec<_>>().join(",")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smart_run::weights::StoredType;

    fn lines(names: &[(&str, &[usize])]) -> Vec<String> {
        grouped(names.iter().map(|&(name, shape)| TensorInfo {
            name,
            dtype: StoredType::BF16,
            shape,
            size_in_bytes: 0,
        }))
    }

    #[test]
    fn layers_of_one_shape_are_one_line() {
        let tensors: &[(&str, &[usize])] = &[
            ("model.layers.0.up.weight", &[4, 2]),
            ("model.layers.1.up.weight", &[4, 2]),
            ("model.layers.10.up.weight", &[4, 2]),
            ("model.layers.2.up.weight", &[4, 2]),
            ("model.layers.3.up.weight", &[8, 2]),
            ("model.norm.weight", &[2]),
        ];
        assert_eq!(
            lines(tensors),
            [
                "model.layers.{0..2,10}.up.weight [4, 2] bf16",
                "model.layers.3.up.weight [8, 2] bf16",
                "model.norm.weight [2] bf16"
            ]
        );
    }

    #[test]
    fn experts_of_layers_are_grouped_twice() {
        let names: Vec<String> = (0..6).map(|i| format!("layers.{}.experts.{}.w", i / 3, i % 3)).collect();
        let tensors: Vec<(&str, &[usize])> = names.iter().map(|name| (name.as_str(), &[3][..])).collect();
        assert_eq!(lines(&tensors), ["layers.{0..1}.experts.{0..2}.w [3] bf16"]);
    }

    #[test]
    fn numbers_that_are_names_stay() {
        assert_eq!(
            lines(&[("a.007", &[]), ("a.008", &[]), ("x.1", &[])]),
            ["a.007 [] bf16", "a.008 [] bf16", "x.1 [] bf16"]
        );
    }
}
