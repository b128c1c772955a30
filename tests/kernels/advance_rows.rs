use smart_run::device::{DType, Tensor};
use smart_run::kernels::advance_rows::{AdvanceRowsArgs, advance_rows};
use smart_run::reference::advance_rows::{self as oracle, Rows};

use crate::common::device::device;
use crate::common::inputs::Rng;

const MAX_PAGES: usize = 7;

/// Every third sequence has no row; pages are in no order, rows at the ends of pages among them.
#[test]
fn every_case_matches_the_oracle() {
    let device = device();
    for (num_sequences, axes, filler, page_size) in
        [(1, 1, 0, 16), (1, 3, 7, 16), (9, 1, 2, 16), (9, 3, 0, 32), (200, 1, 8, 16)]
    {
        let mut random = Rng::new(num_sequences as u64 + axes as u64);
        let mut below = |limit: usize| random.below(limit) as i32;
        let row_sequence: Vec<i32> =
            (0..num_sequences).filter(|b| num_sequences == 1 || b % 3 != 1).map(|b| b as i32).collect();
        let num_rows = row_sequence.len();
        let width = num_rows + filler;
        let page_table: Vec<Vec<i32>> =
            (0..num_sequences).map(|_| (0..MAX_PAGES).map(|_| below(5000)).collect()).collect();
        let mut drawn: Vec<i32> = (0..num_rows).map(|_| below(1000)).collect();
        drawn[num_rows / 2] = -1;
        let mut prefix_len: Vec<i32> =
            (0..num_sequences).map(|_| below(page_size as usize * MAX_PAGES - 1)).collect();
        prefix_len[0] = page_size - 1;
        let mut ints = |len: usize| -> Vec<i32> { (0..len).map(|_| below(1 << 20)).collect() };
        let before = Rows {
            tokens: ints(num_rows),
            positions: (0..axes).map(|_| ints(width)).collect(),
            slots: ints(num_rows),
            draw_positions: ints(num_rows),
            prefix_len,
        };
        let mut want = before.clone();
        oracle::advance_rows(&mut want, &drawn, &row_sequence, &page_table, page_size);
        for mode in device.modes().into_iter().chain(device.schedules()) {
            device.enter(mode);
            let tensor = |ints: &[i32], shape: &[usize]| Tensor::from_slice(&device, ints, shape).unwrap();
            let [tokens, slots, draw_positions] =
                [&before.tokens, &before.slots, &before.draw_positions].map(|it| tensor(it, &[num_rows]));
            let positions = tensor(&before.positions.concat(), &[axes, width]);
            let prefix_len = tensor(&before.prefix_len, &[num_sequences]);
            let args = AdvanceRowsArgs {
                drawn: &tensor(&drawn, &[num_rows]),
                row_sequence: &tensor(&row_sequence, &[num_rows]),
                page_table: &tensor(&page_table.concat(), &[num_sequences, MAX_PAGES]),
                page_size: page_size as usize,
                tokens: &tokens,
                positions: &positions,
                slots: &slots,
                draw_positions: &draw_positions,
                prefix_len: &prefix_len,
            };
            advance_rows(&device, args).unwrap();
            let read = |tensor: &Tensor| tensor.to_vec::<i32>().unwrap();
            let got = Rows {
                tokens: read(&tokens),
                positions: read(&positions).chunks(width).map(<[i32]>::to_vec).collect(),
                slots: read(&slots),
                draw_positions: read(&draw_positions),
                prefix_len: read(&prefix_len),
            };
            assert_eq!(got, want, "{num_sequences} sequences, {axes} axes, {mode:?}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = device();
    let ints = |shape: &[usize]| Tensor::zeros(&device, DType::I32, shape).unwrap();
    let (two, three) = (ints(&[2]), ints(&[3]));
    let refusal = |drawn: &Tensor, positions: &Tensor| {
        let args = AdvanceRowsArgs {
            drawn,
            row_sequence: &two,
            page_table: &ints(&[3, 1]),
            page_size: 16,
            tokens: &two,
            positions,
            slots: &two,
            draw_positions: &two,
            prefix_len: &three,
        };
        advance_rows(&device, args).unwrap_err().to_string()
    };
    assert!(refusal(&three, &ints(&[1, 2])).contains("row_sequence"));
    assert!(refusal(&two, &ints(&[1, 1])).contains("positions"));
}
