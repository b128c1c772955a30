use super::*;
use crate::device::DeviceChoice;
use crate::model::causal_words;

/// A tree of three nodes, a sequence without work, and a chunk of five rows of which the last wants logits, if any does.
fn fill(pass: &mut Pass, chunk_is_last: bool) {
    let row = |token: i32, link: i32, index: usize| Row {
        token,
        position: 10 + index,
        rotary: [10 + index as i32; 3],
        slot: 100 + token,
        ancestors: causal_words(index),
        link,
    };
    pass.clear();
    pass.begin_sequence(10);
    for (i, (token, parent)) in [(7, -1), (8, 0), (9, 0)].into_iter().enumerate() {
        pass.push(row(token, parent, i), true);
    }
    pass.begin_sequence(0);
    pass.begin_sequence(20);
    for i in 0..5 {
        pass.push(row(50 + i, -1, i as usize), chunk_is_last && i == 4);
    }
}

/// All that is told of a pass whose rows are partly only read, for every tread: a graph fetches as much as a pass of its shape may need.
#[test]
fn what_is_staged_is_fetched() {
    let device = Device::open(DeviceChoice::Host).unwrap();
    for tread in [1, 8] {
        // As large as the pass, so that nothing is to spare.
        let mut pass = Pass::new(&device, 8, 3).unwrap().with_sections(Some([8, 12, 12])).with_tread(tread);
        fill(&mut pass, true);
        pass.keep_outputs(40);
        pass.stage();
        pass.fetch().unwrap();
        let read = |tensor: Tensor| tensor.to_vec::<i32>().unwrap();
        assert_eq!(read(pass.tokens()), [7, 8, 9, 50, 51, 52, 53, 54]);
        assert_eq!(read(pass.slots()), [107, 108, 109, 150, 151, 152, 153, 154]);
        assert_eq!(read(pass.draw_positions()), [11, 12, 13, 15], "tread {tread}");
        assert_eq!(read(pass.draw_sequences()), [0, 0, 0, 2], "tread {tread}");
        let trees = pass.trees();
        assert_eq!(read(trees.seq_start), [0, 3, 3, 4], "tread {tread}");
        assert_eq!(read(trees.tokens), [7, 8, 9, 54], "tread {tread}");
        assert_eq!(read(trees.parents), [-1, 0, 0, -1], "tread {tread}");
        assert_eq!(read(pass.outputs())[14..16], [7, 47]);
    }
}

/// What a graph fetches is the same for every pass of its shape.
#[test]
fn passes_of_a_shape_fetch_alike() {
    let device = Device::open(DeviceChoice::Host).unwrap();
    let mut pass = Pass::new(&device, 8, 3).unwrap().with_tread(8);
    let [one, other] = [true, false].map(|chunk_is_last| {
        fill(&mut pass, chunk_is_last);
        pass.stage();
        (pass.shape(), pass.num_staged)
    });
    assert_eq!(one, other);
}

/// What of a pass is gathered is a matter of its shape: the launches are others.
#[test]
fn passes_that_gather_have_a_shape_of_their_own() {
    let device = Device::open(DeviceChoice::Host).unwrap();
    let mut pass = Pass::new(&device, 8, 1).unwrap().with_tread(8);
    let row = Row { token: 0, position: 0, rotary: [0; 3], slot: 0, ancestors: causal_words(0), link: -1 };
    let [all, last] = [0, 7].map(|first_wanted| {
        pass.clear();
        pass.begin_sequence(0);
        (0..8).for_each(|i| pass.push(row, i >= first_wanted));
        assert_eq!(pass.all_want_logits(), first_wanted == 0);
        (pass.logit_width(), pass.shape())
    });
    assert_eq!(all.0, last.0);
    assert_ne!(all.1, last.1);
}
