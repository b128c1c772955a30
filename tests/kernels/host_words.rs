use smart_run::device::{DType, Device, PinnedBuffer, Tensor};
use smart_run::kernels::host_words::{PostWordsArgs, fetch_words, post_words};

use crate::common::device::device;
use crate::common::inputs::Rng;

/// One block, several, more than the grid has threads; ends within and at the end of a warp.
const SIZES: [usize; 7] = [0, 1, 31, 32, 1025, 5000, 40_000];
const STAYS: i32 = -77;

fn words(seed: u64, count: usize) -> Vec<i32> {
    let mut random = Rng::new(seed);
    (0..count).map(|_| random.next() as i32).collect()
}

fn pinned(device: &Device, words: &[i32]) -> PinnedBuffer<i32> {
    let mut buffer = PinnedBuffer::new(device, words.len()).unwrap();
    buffer.as_mut_slice().copy_from_slice(words);
    buffer
}

/// From and to the middle of an array; what lies around it stays.
#[test]
fn words_come_and_go_as_they_are() {
    let device = device();
    for mode in device.modes().into_iter().chain(device.schedules()) {
        device.enter(mode);
        for (size, offset) in SIZES.into_iter().zip([0, 3, 4, 1, 0, 5, 4]) {
            let values = words(size as u64, size + offset);
            let (inside, all) = (offset..offset + size, size + offset + 2);
            let around = |inside: &[i32]| [&vec![STAYS; offset], inside, &[STAYS; 2]].concat();

            let host = pinned(&device, &values);
            let out = Tensor::from_slice(&device, &vec![STAYS; all], &[all]).unwrap();
            let src = host.mapped().rows(0..size);
            fetch_words(&device, &src, &out.rows(inside.clone())).unwrap();
            assert_eq!(out.to_vec::<i32>().unwrap(), around(&values[..size]), "fetch of {size}, {mode:?}");

            let src = Tensor::from_slice(&device, &values, &[values.len()]).unwrap().rows(inside.clone());
            let (host, flag) = (pinned(&device, &vec![STAYS; all]), pinned(&device, &[6]));
            let (to, ticket) = (host.mapped().rows(inside.clone()), i32::MIN);
            post_words(&device, PostWordsArgs { src: &src, out: &to, flag: &flag.mapped(), ticket }).unwrap();
            flag.wait_for(0, ticket).unwrap();
            assert_eq!(host.as_slice(), around(&values[inside]), "post of {size}, {mode:?}");
        }
    }
}

/// The flag lies where a word is written, too: it can only be the ticket in the end if all words were there before.
#[test]
fn the_flag_follows_the_words() {
    let device = device();
    let values = words(7, 2000);
    let src = Tensor::from_slice(&device, &values, &[2000]).unwrap();
    for mode in device.modes().into_iter().chain(device.schedules()) {
        device.enter(mode);
        for place in [1, 700, 1999] {
            let host = pinned(&device, &[0; 2000]);
            let (out, flag) = (host.mapped(), host.mapped().rows(place..place + 1));
            post_words(&device, PostWordsArgs { src: &src, out: &out, flag: &flag, ticket: 5 }).unwrap();
            device.synchronize().unwrap();
            assert_eq!(host.as_slice()[place], 5, "{place} {mode:?}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = device();
    let tensor = |dtype, len| Tensor::zeros(&device, dtype, &[len]).unwrap();
    let (three, four, floats) = (tensor(DType::I32, 3), tensor(DType::I32, 4), tensor(DType::F32, 3));
    assert!(fetch_words(&device, &three, &four).unwrap_err().to_string().contains("fetch_words"));
    assert!(fetch_words(&device, &floats, &three).unwrap_err().to_string().contains("src"));
    let refusal = |src: &Tensor, out: &Tensor, flag: &Tensor| {
        post_words(&device, PostWordsArgs { src, out, flag, ticket: 1 }).unwrap_err().to_string()
    };
    assert!(refusal(&three, &four, &tensor(DType::I32, 1)).contains("out"));
    assert!(refusal(&three, &three, &four).contains("flag"));
}
