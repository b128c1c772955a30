use smart_run::device::{DType, Device, Tensor};
use smart_run::kernels::penalties::{PenaliseArgs, PenaltyParams, count_tokens, penalise};
use smart_run::reference::penalties as oracle;
use smart_run::sampling::Penalties;

use crate::common::compare::same_bits;
use crate::common::device::device;
use crate::common::inputs::Rng;

/// A sequence with a draft tree.
#[derive(Clone)]
struct Case {
    penalties: Penalties,
    prompt: Vec<i32>,
    emitted: Vec<i32>,
    biases: Vec<(i32, f32)>,
    /// The root first; its token is the last emitted one.
    tokens: Vec<i32>,
    parents: Vec<i32>,
}

impl Case {
    /// Few distinct tokens, so that they come again along a path.
    fn random(vocab_size: usize, num_nodes: usize, penalties: Penalties, seed: u64) -> Self {
        let mut random = Rng::new(seed);
        let few = vocab_size.min(7);
        let mut tokens =
            |count: usize| -> Vec<i32> { (0..count).map(|_| random.below(few) as i32).collect() };
        let (prompt, emitted, tokens) = (tokens(5), tokens(4), tokens(num_nodes));
        let parent = |node: usize| if node == 0 { -1 } else { (node - 1 - random.below(node.min(3))) as i32 };
        let parents = (0..num_nodes).map(parent).collect();
        let biases = [(0, 1.25), (vocab_size as i32 - 1, f32::NEG_INFINITY)];
        Self { penalties, prompt, emitted, biases: biases[..vocab_size.min(2)].to_vec(), tokens, parents }
    }

    /// Tokens emitted at a node, those on its way included.
    fn emitted_at(&self, mut node: usize) -> Vec<i32> {
        let mut emitted = self.emitted.clone();
        while self.parents[node] >= 0 {
            emitted.push(self.tokens[node]);
            node = self.parents[node] as usize;
        }
        emitted
    }
}

const ALL: Penalties = Penalties { repetition: 1.3, presence: 0.7, frequency: 0.31 };
const NONE: Penalties = Penalties { repetition: 1.0, presence: 0.0, frequency: 0.0 };

fn cases(vocab_size: usize) -> Vec<Case> {
    let one =
        |seed: u64, nodes: usize, penalties: Penalties| Case::random(vocab_size, nodes, penalties, seed);
    let mut untouched = one(1, 6, NONE);
    untouched.biases.clear();
    vec![
        one(0, 1, ALL),
        untouched,
        one(2, 40, ALL),
        one(3, 9, NONE),
        one(4, 12, Penalties { repetition: 0.5, ..NONE }),
        one(5, 12, Penalties { presence: -1.5, ..NONE }),
        Case { parents: (-1..255).collect(), ..one(6, 256, Penalties { frequency: 0.1, ..NONE }) },
    ]
}

fn run(device: &Device, cases: &[Case], logits: &[f32], vocab_size: usize) -> Vec<f32> {
    const MOST: usize = 3;
    let upload = |values: &[i32], shape: &[usize]| Tensor::from_slice(device, values, shape).unwrap();
    let rows: usize = cases.iter().map(|case| case.tokens.len()).sum();
    let (mut seq_start, mut entries) = (vec![0], Vec::new());
    let (mut params, mut row_sequence) = (Vec::new(), Vec::new());
    let (mut bias_tokens, mut bias_values) = (Vec::new(), Vec::new());
    for (b, case) in cases.iter().enumerate() {
        seq_start.push(seq_start[b] + case.tokens.len() as i32);
        row_sequence.extend(vec![b as i32; case.tokens.len()]);
        params.push(PenaltyParams::new(&case.penalties, case.biases.len()));
        entries.extend(case.prompt.iter().flat_map(|&token| [b as i32, token, 0]));
        entries.extend(case.emitted.iter().flat_map(|&token| [b as i32, token, 1]));
        let padded = |i: usize| case.biases.get(i).copied().unwrap_or((-9, f32::NAN));
        bias_tokens.extend((0..MOST).map(|i| padded(i).0));
        bias_values.extend((0..MOST).map(|i| padded(i).1));
    }
    let batch = cases.len();
    let counts = Tensor::zeros(device, DType::I32, &[batch, vocab_size]).unwrap();
    count_tokens(device, &upload(&entries, &[entries.len() / 3, 3]), &counts).unwrap();
    let logits = Tensor::from_slice(device, logits, &[rows, vocab_size]).unwrap();
    let column = |of: fn(&Case) -> &Vec<i32>| -> Vec<i32> { cases.iter().flat_map(of).copied().collect() };
    let args = PenaliseArgs {
        logits: &logits,
        row_sequence: &upload(&row_sequence, &[rows]),
        params: &PenaltyParams::upload(device, &params).unwrap(),
        counts: &counts,
        bias_tokens: &upload(&bias_tokens, &[batch, MOST]),
        bias_values: &Tensor::from_slice(device, &bias_values, &[batch, MOST]).unwrap(),
        seq_start: &upload(&seq_start, &[batch + 1]),
        tokens: &upload(&column(|case| &case.tokens), &[rows]),
        parents: &upload(&column(|case| &case.parents), &[rows]),
    };
    penalise(device, args).unwrap();
    logits.to_vec::<f32>().unwrap()
}

fn logits(cases: &[Case], vocab_size: usize) -> Vec<f32> {
    let rows: usize = cases.iter().map(|case| case.tokens.len()).sum();
    let mut values = Rng::new(77).with_outliers(rows * vocab_size);
    values[0] = f32::NEG_INFINITY;
    values
}

fn expected(cases: &[Case], logits: &[f32], vocab_size: usize) -> Vec<f32> {
    let nodes = cases.iter().flat_map(|case| (0..case.tokens.len()).map(move |node| (case, node)));
    nodes
        .zip(logits.chunks(vocab_size))
        .flat_map(|((case, node), row)| {
            oracle::penalise(row, &case.penalties, &case.prompt, &case.emitted_at(node), &case.biases)
        })
        .collect()
}

#[test]
fn every_node_is_penalised_for_its_own_path() {
    let device = device();
    for vocab_size in [1, 7, 130, 1031] {
        let cases = cases(vocab_size);
        let logits = logits(&cases, vocab_size);
        let want = expected(&cases, &logits, vocab_size);
        for mode in device.modes().into_iter().chain(device.schedules()) {
            device.enter(mode);
            let got = run(&device, &cases, &logits, vocab_size);
            same_bits(&format!("V={vocab_size} {mode:?}"), &got, &want);
        }
    }
}

#[test]
fn a_sequence_has_the_same_bits_alone() {
    let device = device();
    let cases = cases(130);
    let logits = logits(&cases, 130);
    for mode in device.modes() {
        device.enter(mode);
        let together = run(&device, &cases, &logits, 130);
        let mut start = 0;
        for case in &cases {
            let rows = start..start + 130 * case.tokens.len();
            let alone = run(&device, std::slice::from_ref(case), &logits[rows.clone()], 130);
            same_bits(&format!("{mode:?}"), &alone, &together[rows.clone()]);
            start = rows.end;
        }
    }
}

#[test]
fn counts_tell_prompt_and_text_apart() {
    let device = device();
    for mode in device.modes().into_iter().chain(device.schedules()) {
        device.enter(mode);
        let counts = Tensor::zeros(&device, DType::I32, &[2, 3]).unwrap();
        let entries = [[0, 2, 0], [0, 2, 0], [1, 0, 1], [1, 0, 1], [1, 0, 0], [1, 1, 1]].concat();
        let entries = Tensor::from_slice(&device, &entries, &[6, 3]).unwrap();
        count_tokens(&device, &entries, &counts).unwrap();
        assert_eq!(counts.to_vec::<i32>().unwrap(), [0, 0, 1, 5, 2, 0], "{mode:?}");
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let device = device();
    let entries = Tensor::zeros(&device, DType::I32, &[2, 2]).unwrap();
    let counts = Tensor::zeros(&device, DType::I32, &[1, 4]).unwrap();
    let error = count_tokens(&device, &entries, &counts).unwrap_err();
    assert!(error.to_string().contains("count_tokens"), "{error}");
}
