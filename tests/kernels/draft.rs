use smart_run::device::{DType, Device, PinnedBuffer, Tensor};
use smart_run::kernels::digest::{digest_buffer, draft_digest};
use smart_run::kernels::draft::{
    ChildrenPost, DraftBeamArgs, DraftFrontierArgs, DraftTopkArgs, FrontierRow, HostWords, RunTables,
    draft_beam, draft_frontier, draft_topk,
};
use smart_run::reference::draft as oracle;
use smart_run::sampling::DIGEST_LEN;

use crate::common::device::device;
use crate::common::inputs::Rng;

fn normals(random: &mut Rng, len: usize, scale: f32) -> Vec<f32> {
    random.normals(len).into_iter().map(|value| value * scale).collect()
}

/// Offsets that keep ids ascending, as real drafters have them.
fn offsets(vocab_size: usize) -> Vec<i32> {
    (0..vocab_size as i32).map(|id| id / 3).collect()
}

fn bits(floats: &Tensor) -> Vec<i32> {
    floats.to_vec::<f32>().unwrap().into_iter().map(|value| value.to_bits() as i32).collect()
}

fn check_topk(device: &Device, name: &str, rows: &[Vec<f32>], k: usize, has_offsets: bool) {
    let (num_rows, vocab_size) = (rows.len(), rows[0].len());
    let parent_logp: Vec<f32> = (0..num_rows).map(|row| -0.37 * row as f32).collect();
    let d2t = offsets(vocab_size);
    let d2t_device = Tensor::from_slice(device, &d2t, &[vocab_size]).unwrap();
    // Children of this launch lie behind those of three rows before it, and two rows are left.
    let (before, room) = (3, num_rows + 5);
    let tokens = Tensor::uninit(device, DType::I32, &[room, k]).unwrap();
    let logp = Tensor::uninit(device, DType::F32, &[room, k]).unwrap();
    let path_logp = Tensor::uninit(device, DType::F32, &[room, k]).unwrap();
    let logits = Tensor::from_slice(device, &rows.concat(), &[num_rows, vocab_size]).unwrap();
    let parents = Tensor::from_slice(device, &parent_logp, &[num_rows]).unwrap();
    let digests = digest_buffer(device, num_rows, vocab_size).unwrap();
    draft_digest(device, &logits, &digests).unwrap();
    let mut words = PinnedBuffer::<i32>::new(device, 2 * num_rows * k + 1).unwrap();
    let mut flag = PinnedBuffer::<i32>::new(device, 1).unwrap();
    words.as_mut_slice().fill(-7);
    flag.as_mut_slice()[0] = 0;
    let mapped_flag = flag.mapped();
    let arrivals = Tensor::zeros(device, DType::I32, &[1]).unwrap();
    let launch = |ticket: Option<i32>| {
        for out in [&tokens, &logp, &path_logp] {
            out.fill_bytes(0xff).unwrap();
        }
        let first = if ticket.is_some() { before * k } else { 0 };
        let call = Tensor::from_slice(device, &[first as i32, ticket.unwrap_or(0)], &[2]).unwrap();
        let post = ticket.map(|_| ChildrenPost {
            call: &call,
            words: words.mapped().rows(0..2 * num_rows * k).reshape(&[2, num_rows, k]),
            flag: &mapped_flag,
            arrivals: &arrivals,
        });
        let args = DraftTopkArgs {
            logits: &logits,
            d2t: has_offsets.then_some(&d2t_device),
            parent_logp: &parents,
            k,
            tokens: &tokens,
            logp: &logp,
            path_logp: &path_logp,
            digests: &digests,
            post,
        };
        draft_topk(device, args).unwrap();
        let all = [tokens.to_vec::<i32>().unwrap(), bits(&logp), bits(&path_logp)];
        all.map(|all| {
            let (end, of_launch) = (first + num_rows * k, &all[first..][..num_rows * k]);
            assert!(
                all[..first].iter().chain(&all[end..]).all(|&word| word == -1),
                "{name}: written elsewhere"
            );
            of_launch.to_vec()
        })
    };
    // Twice, for the arrivals are as they were, whichever block came last.
    for ticket in [5, 6] {
        let posted = launch(Some(ticket));
        assert_eq!(flag.load(0), ticket, "{name}");
        let wanted = [&posted[0][..], &posted[1], &[-7]].concat();
        assert_eq!(words.as_slice(), wanted, "{name}, in the host's memory");
        assert_eq!(posted, launch(None), "{name}, without a post");
    }
    let (tokens, logp, path_logp) =
        (tokens.to_vec::<i32>().unwrap(), logp.to_vec::<f32>().unwrap(), path_logp.to_vec::<f32>().unwrap());
    for (row, logits) in rows.iter().enumerate() {
        let want = oracle::topk(logits, has_offsets.then_some(&d2t), parent_logp[row], k);
        for (place, want) in want.into_iter().enumerate() {
            let i = row * k + place;
            let got = oracle::Child { token: tokens[i], logp: logp[i], path_logp: path_logp[i] };
            assert_eq!(got, want, "{name}, row {row}, place {place}");
        }
    }
}

fn risky_rows(vocab_size: usize) -> Vec<Vec<f32>> {
    let mut random = Rng::new(vocab_size as u64 + 1);
    let normal = normals(&mut random, vocab_size, 3.0);
    let mut mostly_nan = vec![f32::NAN; vocab_size];
    mostly_nan[vocab_size - 1] = 2.0;
    let mut infinite = normal.clone();
    infinite[vocab_size / 2] = f32::INFINITY;
    vec![
        normal.iter().map(|x| (x * 2.0).round()).collect(), // many ties
        normal,
        vec![1.5; vocab_size],
        vec![f32::NAN; vocab_size],
        vec![f32::NEG_INFINITY; vocab_size],
        mostly_nan,
        infinite,
        (0..vocab_size).map(|i| i as f32 * 0.02).collect(), // every token displaces an earlier one
        (0..vocab_size).map(|i| i as f32 * -100.0).collect(), // one token has all the mass
    ]
}

/// Who has seen the flag sees all words, with no other wait: of many blocks, whichever comes last. What they say is otherwise tested.
#[test]
fn children_are_there_when_the_flag_is() {
    let held = device();
    let device: &Device = &held;
    let (rows, vocab_size, k) = (96, 5 * DIGEST_LEN, 10);
    let logits = normals(&mut Rng::new(6), rows * vocab_size, 2.0);
    let logits = Tensor::from_slice(device, &logits, &[rows, vocab_size]).unwrap();
    let digests = digest_buffer(device, rows, vocab_size).unwrap();
    draft_digest(device, &logits, &digests).unwrap();
    let zeros = |dtype, shape: &[usize]| Tensor::zeros(device, dtype, shape).unwrap();
    let (parent_logp, arrivals) = (zeros(DType::F32, &[rows]), zeros(DType::I32, &[1]));
    let tokens = zeros(DType::I32, &[rows, k]);
    let [logp, path_logp] = [(); 2].map(|()| zeros(DType::F32, &[rows, k]));
    let mut words = PinnedBuffer::<i32>::new(device, 2 * rows * k).unwrap();
    let mut flag = PinnedBuffer::<i32>::new(device, 1).unwrap();
    flag.as_mut_slice()[0] = 0;
    let mapped_flag = flag.mapped();
    let repeats = if held.is_host() { 3 } else { 300 };
    let mut wanted: Option<Vec<i32>> = None;
    for ticket in 1..=repeats {
        words.as_mut_slice().fill(-7);
        let call = Tensor::from_slice(device, &[0, ticket], &[2]).unwrap();
        let post = ChildrenPost {
            call: &call,
            words: words.mapped().reshape(&[2, rows, k]),
            flag: &mapped_flag,
            arrivals: &arrivals,
        };
        let (logits, digests, parent_logp) = (&logits, &digests, &parent_logp);
        let (tokens, logp, path_logp) = (&tokens, &logp, &path_logp);
        let (d2t, post) = (None, Some(post));
        let args = DraftTopkArgs { logits, digests, d2t, parent_logp, k, tokens, logp, path_logp, post };
        draft_topk(device, args).unwrap();
        flag.wait_for(0, ticket).unwrap();
        let seen = words.as_slice().to_vec();
        assert!(!seen[..rows * k].contains(&-7), "launch {ticket}: some words were not there");
        assert_eq!(&seen, wanted.get_or_insert_with(|| seen.clone()), "launch {ticket}");
        device.synchronize().unwrap();
    }
}

#[test]
fn topk_of_risky_rows_agrees_with_the_oracle() {
    let held = device();
    let device: &Device = &held;
    for (vocab_size, k) in [(1, 1), (3, 3), (130, 10), (1024, 8), (1027, 32), (64, 32)] {
        for mode in held.modes() {
            held.enter(mode);
            for has_offsets in [false, true] {
                let name = format!("{mode:?}, vocabulary {vocab_size}, k {k}");
                check_topk(device, &name, &risky_rows(vocab_size), k, has_offsets);
            }
        }
    }
}

#[test]
fn topk_does_not_depend_on_the_schedule() {
    let held = device();
    let device: &Device = &held;
    let rows = risky_rows(301);
    for mode in held.modes().into_iter().chain(held.schedules()) {
        held.enter(mode);
        check_topk(device, &format!("{mode:?}"), &rows[..3], 10, true);
    }
}

/// Vocabularies that end before, at and behind a boundary of slices.
#[test]
fn topk_over_slices_agrees_with_the_oracle() {
    let held = device();
    let device: &Device = &held;
    for (vocab_size, k) in [
        (DIGEST_LEN - 1, 10),
        (DIGEST_LEN, 10),
        (DIGEST_LEN + 1, 10),
        (2 * DIGEST_LEN - 4, 5),
        (2 * DIGEST_LEN + 3, 32),
        (3 * DIGEST_LEN + 4, 1),
        // More slices than a warp has lanes, than a block of four warps or of eight looks at in one go.
        (33 * DIGEST_LEN + 1, 32),
        (513 * DIGEST_LEN, 10),
        (1025 * DIGEST_LEN + 2, 32),
    ] {
        for mode in held.modes() {
            held.enter(mode);
            check_topk(
                device,
                &format!("{mode:?}, vocabulary {vocab_size}, k {k}"),
                &risky_rows(vocab_size),
                k,
                true,
            );
        }
    }
}

/// Where the best are: the last token of a slice and the first of the next, one in every slice, all in the last; with ties and
/// slices in which nothing is possible.
#[test]
fn topk_finds_children_wherever_slices_end() {
    let held = device();
    let device: &Device = &held;
    let (slices, k) = (5, 32);
    let vocab_size = (slices - 1) * DIGEST_LEN + 13;
    let background = normals(&mut Rng::new(12), vocab_size, 1.0);
    let with = |places: &[usize], value: fn(usize) -> f32| {
        let mut row = background.clone();
        places.iter().enumerate().for_each(|(i, &place)| row[place] = value(i));
        row
    };
    let boundaries: Vec<usize> =
        (1..slices).flat_map(|slice| [slice * DIGEST_LEN - 1, slice * DIGEST_LEN]).collect();
    let spread: Vec<usize> = (0..k).map(|i| (i * 517 + i % 2 * DIGEST_LEN) % vocab_size).collect();
    let last: Vec<usize> = (vocab_size - 13..vocab_size).collect();
    let mut possible_in_one = vec![f32::NEG_INFINITY; vocab_size];
    possible_in_one[2 * DIGEST_LEN..2 * DIGEST_LEN + 40].fill(-3.0);
    let mut nan_but_two = vec![f32::NAN; vocab_size];
    (nan_but_two[DIGEST_LEN - 1], nan_but_two[vocab_size - 1]) = (1.0, 1.0);
    // A slice far below the others has mass of its own, and none in the row.
    let mut far_below = background.clone();
    far_below[DIGEST_LEN..2 * DIGEST_LEN].iter_mut().for_each(|logit| *logit -= 500.0);
    let mut infinite = background.clone();
    (infinite[3], infinite[DIGEST_LEN + 3], infinite[DIGEST_LEN + 4]) =
        (f32::INFINITY, f32::INFINITY, f32::INFINITY);
    let rows = [
        with(&boundaries, |_| 9.0),
        with(&boundaries, |i| 9.0 + (i % 3) as f32),
        with(&spread, |_| 7.0),
        with(&spread, |i| 7.0 + i as f32 * 0.1),
        with(&last, |i| 8.0 - i as f32 * 0.1),
        vec![0.5; vocab_size],
        possible_in_one,
        nan_but_two,
        far_below,
        infinite,
    ];
    for mode in held.modes().into_iter().chain(held.schedules()) {
        held.enter(mode);
        check_topk(device, &format!("{mode:?}"), &rows, k, false);
    }
}

#[test]
fn topk_of_many_rows_agrees_with_the_oracle() {
    let held = device();
    let device: &Device = &held;
    let mut random = Rng::new(31);
    let rows: Vec<Vec<f32>> = (0..260).map(|_| normals(&mut random, 40 * DIGEST_LEN + 8, 2.0)).collect();
    for mode in held.modes() {
        held.enter(mode);
        check_topk(device, &format!("{mode:?}"), &rows, 3, false);
    }
}

#[test]
fn topk_wants_digests_of_its_logits_and_room() {
    let held = device();
    let device: &Device = &held;
    let tensor = |dtype, shape: &[usize]| Tensor::zeros(device, dtype, shape).unwrap();
    let message = |digests: &Tensor, room| {
        let args = DraftTopkArgs {
            logits: &tensor(DType::F32, &[2, DIGEST_LEN + 1]),
            digests,
            d2t: None,
            parent_logp: &tensor(DType::F32, &[2]),
            k: 3,
            tokens: &tensor(DType::I32, &[room, 3]),
            logp: &tensor(DType::F32, &[room, 3]),
            path_logp: &tensor(DType::F32, &[room, 3]),
            post: None,
        };
        draft_topk(device, args).unwrap_err().to_string()
    };
    for (rows, vocab_size) in [(1, DIGEST_LEN + 1), (2, DIGEST_LEN)] {
        let message = message(&digest_buffer(device, rows, vocab_size).unwrap(), 2);
        assert!(message.contains("draft_topk: digests: expected u64 [2, 2, 2]"), "{message}");
    }
    let message = message(&digest_buffer(device, 2, DIGEST_LEN + 1).unwrap(), 1);
    assert!(message.contains("draft_topk: tokens: expected at least 2 rows"), "{message}");
}

#[test]
fn topk_of_a_large_vocabulary_agrees_with_the_oracle() {
    let held = device();
    let device: &Device = &held;
    let row = normals(&mut Rng::new(3), 152_064, 2.0);
    for mode in held.modes() {
        held.enter(mode);
        check_topk(device, &format!("{mode:?}"), std::slice::from_ref(&row), 10, false);
    }
}

#[test]
fn beam_takes_the_likeliest_candidates_of_each_sequence() {
    let held = device();
    let device: &Device = &held;
    let (num_sequences, rows_per_sequence, k) = (3, 5, 7);
    let candidates = rows_per_sequence * k;
    let mut random = Rng::new(40);
    let mut path_logp: Vec<f32> =
        (0..num_sequences * candidates).map(|_| (random.normal() * 4.0).round() * 0.5).collect();
    path_logp[candidates + 3] = f32::NAN;
    path_logp[2 * candidates..].fill(f32::NEG_INFINITY);
    let row_run: Vec<i32> = (0..(num_sequences * rows_per_sequence) as i32).map(|row| row * 3 - 1).collect();
    for width in [1, 10, 32] {
        for mode in held.modes().into_iter().chain(held.schedules()) {
            held.enter(mode);
            let runs_used = Tensor::from_slice(device, &[0, 10, 20], &[num_sequences]).unwrap();
            let frontier = Tensor::uninit(device, DType::I32, &[num_sequences * width, 4]).unwrap();
            let args = DraftBeamArgs {
                path_logp: &Tensor::from_slice(device, &path_logp, &[num_sequences * rows_per_sequence, k])
                    .unwrap(),
                row_run: &Tensor::from_slice(device, &row_run, &[row_run.len()]).unwrap(),
                runs_used: &runs_used,
                frontier: &frontier,
                width,
            };
            draft_beam(device, args).unwrap();
            let got = frontier.to_vec::<i32>().unwrap();
            for sequence in 0..num_sequences {
                let first = sequence * candidates;
                let order = oracle::descending(&path_logp[first..first + candidates]);
                for (place, &candidate) in order[..width].iter().enumerate() {
                    let candidate = first + candidate;
                    let run = sequence * 10 + place;
                    let want = [sequence as i32, candidate as i32, row_run[candidate / k], run as i32];
                    let at = 4 * (sequence * width + place);
                    assert_eq!(
                        got[at..at + 4],
                        want,
                        "{mode:?}, width {width}, sequence {sequence}, place {place}"
                    );
                }
            }
            let used: Vec<i32> = runs_used.to_vec().unwrap();
            assert_eq!(used, [0, 10, 20].map(|used| used + width as i32), "{mode:?}");
        }
    }
}

/// Arrays one behind the other, with something before and behind them, as the host lays them out, and where they are to be on the device.
struct Words {
    values: Vec<i32>,
    host: PinnedBuffer<i32>,
    out: Tensor,
}

impl Words {
    /// More than a block has threads.
    fn new(device: &Device, arrays: &[&[i32]]) -> Self {
        let values = [&[&[7; 12][..]], arrays, &[&[9; 3000][..]]].concat().concat();
        let mut host = PinnedBuffer::new(device, values.len()).unwrap();
        host.as_mut_slice().copy_from_slice(&values);
        let out = Tensor::uninit(device, DType::I32, &[values.len()]).unwrap();
        Self { values, host, out }
    }

    /// Where the arrays are to be.
    fn places(&self, lens: &[usize]) -> Vec<Tensor> {
        let mut at = 12;
        let mut place = |&len: &usize| {
            at += len;
            self.out.rows(at - len..at)
        };
        lens.iter().map(&mut place).collect()
    }
}

/// Levels of a round, each packed from the tables that the earlier ones wrote.
#[test]
fn frontier_packs_level_after_level() {
    pack_levels(false);
}

#[test]
fn frontier_fetches_what_the_host_says_before_it_reads() {
    pack_levels(true);
}

/// With `fetches` what the host says of a level comes to the device by the same launch.
fn pack_levels(fetches: bool) {
    let held = device();
    let device: &Device = &held;
    let (batch, page_size, max_pages, pool_len) = (2, 16, 24, 400);
    let first_position = [100, 40];
    let prefix_len = [90, 33];
    let page_table: Vec<i32> = (0..(batch * max_pages) as i32).map(|i| (i * 29 + 5) % 97).collect();
    let pool_tokens: Vec<i32> = (0..pool_len).map(|i| i * 7 + 1).collect();
    let pool_path_logp: Vec<f32> = (0..pool_len).map(|i| i as f32 * -0.25).collect();
    let root_feature_row = [3, 4];
    for mode in held.modes().into_iter().chain(held.schedules()) {
        held.enter(mode);
        let ints = |data: &[i32]| Tensor::from_slice(device, data, &[data.len()]).unwrap();
        let ancestors_table = Tensor::uninit(device, DType::U64, &[batch, 256, 4]).unwrap();
        let feature_table = Tensor::uninit(device, DType::I32, &[batch, 256]).unwrap();
        let mut random = Rng::new(8);
        // What each run of each sequence sees, and where its hidden output is.
        let mut sees: Vec<Vec<[u64; 4]>> = vec![Vec::new(); batch];
        let mut output_rows: Vec<Vec<i32>> = vec![Vec::new(); batch];
        let mut output_row = 10;
        for level_width in [3usize, 40, 1, 70, 80] {
            let mut frontier = Vec::new();
            for (sequence, runs) in sees.iter().enumerate() {
                let known = runs.len();
                for i in 0..level_width {
                    let parent_run = random.below(known + 1) as i32 - 1;
                    let candidate = random.below(pool_len as usize) as i32;
                    let run = (known + i) as i32;
                    frontier.push(FrontierRow { sequence: sequence as i32, candidate, parent_run, run });
                }
            }
            // The pass is filled up to a multiple of 8.
            let filler = FrontierRow { sequence: -1, candidate: 0, parent_run: 0, run: 0 };
            let num_runs = frontier.len();
            frontier.resize(num_runs.next_multiple_of(8), filler);
            let num_rows = frontier.len();
            let moves: Vec<i32> =
                (0..num_rows).flat_map(|row| [row as i32, (output_row + row) as i32]).collect();
            let out_ints: [Tensor; 5] =
                std::array::from_fn(|_| Tensor::uninit(device, DType::I32, &[num_rows]).unwrap());
            let [tokens, positions, slots, feature_row, row_run] = &out_ints;
            let ancestors = Tensor::uninit(device, DType::U64, &[num_rows, 4]).unwrap();
            let parent_logp = Tensor::uninit(device, DType::F32, &[num_rows]).unwrap();
            let arrays: [&[i32]; 5] =
                [bytemuck::cast_slice(&frontier), &first_position, &prefix_len, &root_feature_row, &moves];
            let words = Words::new(device, &arrays);
            let said = match fetches {
                true => words.places(&arrays.map(<[i32]>::len)),
                false => arrays.map(ints).to_vec(),
            };
            let mapped = words.host.mapped();
            let args = DraftFrontierArgs {
                words: fetches.then_some(HostWords { src: &mapped, out: &words.out }),
                frontier: &said[0].reshape(&[num_rows, 4]),
                pool_tokens: &ints(&pool_tokens),
                pool_path_logp: &Tensor::from_slice(device, &pool_path_logp, &[pool_len as usize]).unwrap(),
                first_position: &said[1],
                prefix_len: &said[2],
                page_table: &Tensor::from_slice(device, &page_table, &[batch, max_pages]).unwrap(),
                page_size,
                root_feature_row: &said[3],
                runs: RunTables { ancestors: &ancestors_table, feature_row: &feature_table },
                moves: &said[4].reshape(&[num_rows, 2]),
                tokens,
                positions,
                slots,
                ancestors: &ancestors,
                parent_logp: &parent_logp,
                feature_row,
                row_run,
            };
            draft_frontier(device, args).unwrap();
            if fetches {
                assert!(words.out.to_vec::<i32>().unwrap() == words.values, "{mode:?}");
            }
            let [tokens, positions, slots, feature_row, row_run] =
                out_ints.map(|tensor| tensor.to_vec::<i32>().unwrap());
            let ancestors = ancestors.to_vec::<u64>().unwrap();
            let parent_logp = parent_logp.to_vec::<f32>().unwrap();
            for row in num_runs..num_rows {
                let got = [tokens[row], positions[row], slots[row], feature_row[row], row_run[row]];
                assert_eq!(got, [0, 0, -1, 0, -1], "{mode:?}, row {row} fills up");
                assert_eq!((&ancestors[4 * row..4 * row + 4], parent_logp[row]), (&[0; 4][..], 0.0));
            }
            frontier.truncate(num_runs);
            for (row, chosen) in frontier.iter().enumerate() {
                let b = chosen.sequence as usize;
                let parent = usize::try_from(chosen.parent_run).ok();
                let above = parent.map_or([0; 4], |run| sees[b][run]);
                let pages = &page_table[b * max_pages..(b + 1) * max_pages];
                let run = chosen.run as usize;
                let want = oracle::place(above, run, first_position[b], prefix_len[b], pages, page_size);
                let words = ancestors[4 * row..4 * row + 4].try_into().unwrap();
                let got = oracle::Placement { position: positions[row], slot: slots[row], ancestors: words };
                assert_eq!(got, want, "{mode:?}, {chosen:?}");
                let candidate = chosen.candidate as usize;
                assert_eq!(
                    (tokens[row], parent_logp[row]),
                    (pool_tokens[candidate], pool_path_logp[candidate]),
                    "{mode:?}"
                );
                assert_eq!(
                    feature_row[row],
                    parent.map_or(root_feature_row[b], |run| output_rows[b][run]),
                    "{mode:?}"
                );
                assert_eq!(row_run[row], chosen.run, "{mode:?}");
            }
            for (row, chosen) in frontier.iter().enumerate() {
                let b = chosen.sequence as usize;
                sees[b].push(ancestors[4 * row..4 * row + 4].try_into().unwrap());
                output_rows[b].push((output_row + row) as i32);
            }
            output_row += num_runs;
        }
    }
}
