//! Once warm, a controller allocates only when a buffer grows to a new maximum: nothing is allocated round by round.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use smart_run::control::roofline::Roofline;
use smart_run::control::{Controller, ControllerConfig, RoundReport, SequenceOutcome};

use crate::common::{Random, view};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, counting calls by thread.
struct Counting;

// SAFETY: every call is the system allocator's own; counting touches a thread-local cell that needs no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's contract is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `alloc` above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: `pointer` came from `alloc` above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `call` and returns what it allocated.
fn count<T>(call: impl FnOnce() -> T) -> usize {
    let before = ALLOCATIONS.with(Cell::get);
    call();
    ALLOCATIONS.with(Cell::get) - before
}

/// Allocations and drafted rounds of the last `counted` of some rounds of eight sequences. The target takes what the drafter thinks
/// likeliest half of the time.
fn allocations(policy: &str, rounds: usize, counted: usize) -> (usize, usize) {
    let cost = Roofline::H200_LLAMA_8B.cost_model(4096);
    let mut controller =
        Controller::new(policy.parse().expect("a policy"), ControllerConfig::default(), cost);
    let views: Vec<_> = (0..8).map(view).collect();
    let mut random = Random(1);
    let logps: Vec<f32> = (0..20_480).map(|_| (random.unit() as f32).ln() - 0.5).collect();
    let tokens: Vec<i32> = (0..20_480).map(|child| child % 10).collect();
    let (mut during, mut drafted) = (0, 0);
    for number in 0..rounds {
        let mut allocated = count(|| {
            controller.begin_round(&views);
            let round = controller.round_mut();
            while let Some(rows) = round.next_level().map(<[_]>::len) {
                let children = rows * round.top_k();
                round.add_level(&tokens[..children], &logps[..children]);
            }
            round.select();
        });
        let trees = controller.round().selected();
        drafted += usize::from(number >= rounds - counted && !controller.round().levels().is_empty());
        let outcomes: Vec<(Vec<u32>, Vec<i32>)> = trees
            .iter()
            .map(|selected| {
                let tree = &selected.tree;
                let draw = |node: usize| tree.children(node).next().filter(|_| random.unit() < 0.5);
                let nodes = 0..tree.num_nodes();
                let drawn: Vec<i32> =
                    nodes.map(draw).map(|child| child.map_or(-1, |child| tree.token(child))).collect();
                (tree.walk(&drawn).0.iter().map(|&node| node as u32).collect(), drawn)
            })
            .collect();
        let outcomes: Vec<_> =
            outcomes.iter().map(|(accepted, drawn)| SequenceOutcome { accepted, drawn }).collect();
        let report = RoundReport { sequences: &outcomes, ..RoundReport::default() };
        allocated += count(|| controller.observe(&report));
        if number >= rounds - counted {
            during += allocated;
        }
    }
    (during, drafted)
}

#[test]
fn no_round_of_a_warm_controller_needs_memory_of_its_own() {
    for policy in [
        "smart",
        "smart-paper",
        "eagle2:10,5,60",
        "opt-tree:60",
        "goodput",
        "ddd",
        "svip:10",
        "disco",
        "tapout",
    ] {
        let (during, drafted) = allocations(policy, 300, 100);
        assert!(drafted > 50, "{policy} drafted in {drafted} of 100 rounds");
        assert!(during < 20, "{policy}: {during} in 100 rounds");
    }
}
