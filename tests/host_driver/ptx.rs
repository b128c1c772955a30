//! Kernels as PTX: instructions by what PTX ISA says of them, and what is wrong is named, with its line. (Clusters, copies and matrices are
//! held to the same primitives as their C++, by `make ptx`.)

use std::path::Path;

use super::{observe_with, selftest};

/// Runs a body of 128 threads that leaves a word in `%r9`; `%r0` is the thread's number, `%s` the first shared byte.
fn observe(body: &str) -> Option<String> {
    observe_in(body, &[])
}

fn observe_with_counts(body: &str, counts: &Path) -> Option<String> {
    observe_in(body, &[("SIMT_PTX_COUNTS", counts.to_str().unwrap())])
}

fn observe_in(body: &str, environment: &[(&str, &str)]) -> Option<String> {
    selftest()?;
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n.extern .shared .align 1024 .b8 smem_tiles[];\n\
         .visible .entry ptx_words(\n\t.param .u64 ptx_words_param_0\n)\n{{\n\t.reg .b32 %r<99>;\n\
         \tmov.u32 %r0, %tid.x; mov.u32 %s, smem_tiles; ld.param.u64 %out, [ptx_words_param_0];\n\
         \tmul.wide.u32 %at, %r0, 4; add.s64 %out, %out, %at;\n{body}\n\tst.global.u32 [%out], %r9;\n\tret;\n}}\n"
    );
    std::fs::write(folder.path().join("words.ptx"), text).unwrap();
    let folder = ("SIMT_PTX", folder.path().to_str().unwrap());
    observe_with("ptx", &[environment, &[folder]].concat())
}

/// The words that the threads leave.
#[track_caller]
fn words(body: &str) -> Option<Vec<u32>> {
    let text = observe(body)?;
    let list = text.strip_prefix("words:").unwrap_or_else(|| panic!("{body}: {text}"));
    Some(list.split_whitespace().map(|word| u32::from_str_radix(word, 16).unwrap()).collect())
}

#[test]
fn instructions_do_what_their_description_says() {
    let cases = [
        ("mov.u32 %r9, 7;", 7),
        ("mov.b32 %r9, -1;", u32::MAX),
        ("add.s32 %r9, 2147483647, 1;", 0x8000_0000),
        ("mul.hi.s32 %r9, -2, 3;", u32::MAX),
        ("mul.hi.u32 %r9, -2, 3;", 2),
        ("mad.lo.s32 %r9, 5, -3, 1;", -14_i32 as u32),
        ("div.s32 %r9, -7, 2;", -3_i32 as u32),
        ("rem.s32 %r9, -7, 2;", -1_i32 as u32),
        ("div.u32 %r9, -7, 2;", 0x7fff_fffc),
        ("mul.wide.s32 %d, -2, 3; shr.s64 %d, %d, 32; cvt.u32.u64 %r9, %d;", u32::MAX),
        ("mul.wide.u32 %d, -2, 3; shr.u64 %d, %d, 32; cvt.u32.u64 %r9, %d;", 2),
        ("shl.b32 %r9, 1, 32;", 0),
        ("shr.s32 %r9, -8, 40;", u32::MAX),
        ("shr.u32 %r9, -8, 40;", 0),
        ("prmt.b32 %r9, 0x33221100, 0x77665544, 0x7240;", 0x7722_4400),
        ("prmt.b32 %r9, 0x80000000, 0, 0xbb33;", 0xffff_8080),
        ("bfi.b32 %r9, 0xab, 0x11111111, 8, 8;", 0x1111_ab11),
        ("bfind.shiftamt.u32 %r9, 0x00010000;", 15),
        ("bfind.shiftamt.u32 %r9, 0;", u32::MAX),
        ("brev.b32 %r9, 1;", 0x8000_0000),
        ("popc.b64 %r9, -1;", 64),
        ("clz.b32 %r9, 0;", 32),
        ("mov.b64 %d, {1, 2}; mov.b64 {%r1, %r9}, %d;", 2),
        ("mov.b32 %r9, {1, 2};", 0x0002_0001),
        ("setp.lt.s32 %p, -1, 0; selp.u32 %r9, 1, 2, %p;", 1),
        ("setp.lt.u32 %p, -1, 0; selp.u32 %r9, 1, 2, %p;", 2),
        ("mov.u32 %r9, 1; setp.eq.s32 %p, 1, 2; @%p mov.u32 %r9, 2; @!%p add.s32 %r9, %r9, 4;", 5),
        // Numbers: NaN is smaller than none and equal to none, and loses.
        ("setp.lt.f32 %p, 0f7FC00000, 0f00000000; selp.u32 %r9, 1, 2, %p;", 2),
        ("setp.geu.f32 %p, 0f7FC00000, 0f00000000; selp.u32 %r9, 1, 2, %p;", 1),
        ("setp.neu.f32 %p, 0f7FC00000, 0f7FC00000; selp.u32 %r9, 1, 2, %p;", 1),
        ("max.f32 %r9, 0f7FC00000, 0f3F800000;", 0x3f80_0000),
        ("max.f32 %r9, 0f80000000, 0f00000000;", 0),
        ("min.f32 %r9, 0f00000000, 0f80000000;", 0x8000_0000),
        ("fma.rn.f32 %r9, 0f3F800001, 0f3F800001, 0fBF800002;", 0x2880_0000), // (1+e)^2 - (1+2e) = e^2, unrounded
        ("fma.rm.f32 %r9, 0f3F800000, 0f3F800000, 0f33000000;", 0x3f80_0000),
        ("fma.rm.f32 %r9, 0f3F800000, 0fBF800000, 0fB3000000;", 0xbf80_0001),
        ("copysign.f32 %r9, 0fBF800000, 0f40000000;", 0xc000_0000),
        ("cvt.sat.f32.f32 %r9, 0f7FC00000;", 0),
        ("cvt.sat.f32.f32 %r9, 0f40000000;", 0x3f80_0000),
        ("cvt.rzi.u64.f32 %d, 0fBF800000; cvt.u32.u64 %r9, %d;", 0),
        ("cvt.rzi.s32.f32 %r9, 0f7F800000;", 0x7fff_ffff),
        ("cvt.rn.f32.s32 %r9, 16777217;", 0x4b80_0000),
        ("cvt.rn.bf16x2.f32 %r9, 0f3F800000, 0f40000000;", 0x3f80_4000), // the first is high
        ("cvt.rn.f16x2.f32 %r9, 0f3F800000, 0f40000000;", 0x3c00_4000),
        ("cvt.s64.s32 %d, -5; cvt.u32.u64 %r9, %d;", -5_i32 as u32),
        ("ex2.approx.ftz.f32 %r9, 0f40400000;", 0x4100_0000),
        ("ex2.approx.ftz.f32 %r9, 0fC3020000;", 0), // 2^-130
        // Memory: what is loaded is extended by its sign; a vector's first element is lowest.
        ("st.shared.u8 [%s+3], 255; ld.shared.s8 %r9, [%s+3];", u32::MAX),
        ("st.shared.u16 [%s+2], 65535; ld.shared.u16 %r9, [%s+2];", 65535),
        ("st.shared.v2.u32 [%s], {1, 2}; ld.shared.v2.u32 {%r9, %r1}, [%s];", 1),
        ("add.s32 %r1, %s, 8; st.shared.u32 [%r1+-8], 3; cvta.shared.u64 %d, 1024; ld.u32 %r9, [%d];", 3),
        (
            ".local .align 16 .b8 own[32]; mov.u64 %d, own; st.local.v2.u32 [%d+16], {8, 9}; ld.local.u32 %r9, [%d+20];",
            9,
        ),
    ];
    for (body, expected) in cases {
        let Some(words) = words(body) else { return };
        assert_eq!((words[0], words[127]), (expected, expected), "{body}");
    }
}

#[test]
fn lanes_hear_whom_their_shuffle_names() {
    let shuffled = |mode: &str, b: u32, c: u32| {
        words(&format!("shfl.sync.{mode}.b32 %r9|%p, %r0, {b}, {c}, -1; @!%p add.s32 %r9, %r9, 1000;"))
    };
    type Expected = fn(u32) -> u32;
    let cases: [(&str, u32, u32, Expected); 6] = [
        ("up", 3, 0, |t| if t % 32 < 3 { t + 1000 } else { t - 3 }),
        ("down", 3, 31, |t| if t % 32 > 28 { t + 1000 } else { t + 3 }),
        ("down", 3, 24 << 8 | 31, |t| if t % 8 > 4 { t + 1000 } else { t + 3 }), // in segments of 8
        ("bfly", 5, 31, |t| t ^ 5),
        ("idx", 9, 31, |t| t / 32 * 32 + 9),
        ("idx", 9, 24 << 8 | 31, |t| t / 8 * 8 + 1), // in segments of 8
    ];
    for (mode, b, c, expected) in cases {
        let Some(words) = shuffled(mode, b, c) else { return };
        assert_eq!(words, (0..128).map(expected).collect::<Vec<_>>(), "{mode} {b} {c:#x}");
    }
}

#[test]
fn warps_vote_and_blocks_wait() {
    let vote = "setp.lt.u32 %p, %r0, 40; vote.sync.ballot.b32 %r9, %p, -1;";
    let Some(votes) = words(vote) else { return };
    assert_eq!((votes[0], votes[32], votes[64]), (u32::MAX, 255, 0));
    let reduce = words("redux.sync.max.u32 %r9, %r0, -1;").unwrap();
    assert_eq!((reduce[0], reduce[64]), (31, 95));
    let add = words(
        "st.shared.u32 [%s], 0; bar.sync 0; atom.shared.add.u32 %r1, [%s], 1; bar.sync 0; ld.shared.u32 %r9, [%s];",
    );
    assert_eq!(add.unwrap()[5], 128);
    let loops =
        words("mov.u32 %r9, 0; $again: add.s32 %r9, %r9, 2; setp.le.u32 %p, %r9, %r0; @%p bra $again;");
    assert_eq!(loops.unwrap()[7], 8);
}

/// Tiles of zeros, and products that are done as late as can be: `early` runs before the wait for them.
fn product(early: &str, word: &str) -> Option<String> {
    observe(&format!(
        "shl.b32 %r1, %r0, 4; add.s32 %r1, %r1, %s; st.shared.v4.u32 [%r1], {{0, 0, 0, 0}};\n\
         fence.proxy.async.shared::cta; bar.sync 0; mov.b32 %f1, 0f3F800000; mov.b32 %f2, 0f3F800000;\n\
         mov.b32 %f3, 0f3F800000; mov.b32 %f4, 0f3F800000; mov.b32 %a, 0; cvt.u64.u32 %d, %s; shr.u64 %d, %d, 4;\n\
         or.b64 %d, %d, 4611686293305294848;\nwgmma.fence.sync.aligned;\n\
         wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {{%f1,%f2,%f3,%f4}}, {{%a,%a,%a,%a}}, %d, 1, 1, 1, 0;\n\
         wgmma.commit_group.sync.aligned;\n{early}\nwgmma.wait_group.sync.aligned 0;\nmov.b32 %r9, {word};"
    ))
}

#[test]
fn products_are_there_behind_their_wait() {
    let Some(text) = product("", "%f1") else { return };
    assert!(text.starts_with("words: 3f800000 3f800000 "), "{text}");
    let copied = product("mov.b32 %r8, %f1;", "%r8").unwrap();
    assert!(copied.starts_with("words: ffffffff "), "before it they are poison: {copied}");
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    let cases = [
        ("frobnicate.u32 %r9, 1;", "words.ptx:12: instruction that is not known: frobnicate.u32"),
        ("mov.u32 %r9, %clock.x;", "words.ptx:12: register %clock.x is not known"),
        ("bra $nowhere;", "no label is named $nowhere"),
        (".global .u32 x;", "directive that is not known"),
        (
            "ld.shared.u32 %r9, [%s+2048];",
            "an address of shared memory is not inside of one variable (words.ptx:12)",
        ),
        ("ld.shared.v2.u32 {%r9, %r1}, [%s+4];", "an address is no multiple of 8 (words.ptx:12)"),
        ("cvta.shared.u64 %g, 1024; ld.u32 %r9, [%g+2048];", "an address of shared memory is not inside"),
        ("bar.sync 16;", "no such barrier"),
        (
            "and.b32 %r1, %r0, 1; setp.eq.s32 %p, %r1, 0; @%p bra $even;\nbar.sync 0;\nbra $both;\n$even: bar.sync 0;\n$both:",
            "two instructions that are not the same: __syncwarp of lines",
        ),
        ("mov.u32 %r9, 0; ld.global.u32 %r9, [%r9];", "illegal memory access"),
    ];
    for (body, expected) in cases {
        let Some(text) = observe(body) else { return };
        assert!(text.starts_with("launch: ") && text.contains(expected), "{body}: {text}");
    }
    for (early, expected) in [
        ("mov.b32 %a, 1;", "registers of A were written before the wait"),
        ("mov.b32 %f3, 0;", "sums were written before the wait"),
        (
            "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f1,%f2,%f4,%f3}, {%a,%a,%a,%a}, %d, 1, 1, 1, 0;",
            "sums that share registers",
        ),
        (
            "cvta.shared.u64 %g, 1024; st.u32 [%g], 0; wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 \
             {%f1,%f2,%f3,%f4}, {%a,%a,%a,%a}, %d, 1, 1, 1, 0;",
            "has not called fence_async_proxy since",
        ),
    ] {
        let text = product(early, "%f1").unwrap();
        assert!(text.starts_with("launch: 719 ") && text.contains(expected), "{early}: {text}");
    }
}

/// Cut anywhere, a file is an error with its line, or a kernel without what is gone.
#[test]
fn a_file_that_is_cut_short_is_an_error() {
    let whole = "\n.visible .entry ptx_words(\n\t.param .u64 ptx_words_param_0\n)\n{\n\t.reg .b32 %r<9>;\n\t\
                 $L_1: @!%p1 add.s32 %r1, %r2, -7;\n\tst.shared.v2.u32 [%r1+-8], {%r2, 3};\n\tret;\n}\n";
    for len in 1..whole.len() - 2 {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("cut.ptx"), &whole[..len]).unwrap();
        let environment = [("SIMT_PTX", folder.path().to_str().unwrap())];
        let Some(text) = observe_with("ptx", &environment) else { return };
        assert!(text.starts_with("launch: 218 "), "{len}: {text}");
    }
}

#[test]
fn counts_without_ptx_are_an_error() {
    let Some(text) = observe_with("ptx", &[("SIMT_PTX_COUNTS", "counts")]) else { return };
    assert!(text.starts_with("launch: 1 ") && text.contains("set SIMT_PTX, too"), "{text}");
}

#[test]
fn a_gpu_before_hopper_has_nothing_of_hoppers() {
    let Some(text) = observe_with("before_hopper", &[("SIMT_SM", "80")]) else { return };
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[0].starts_with("kernel of Hopper's: 500 ") && lines[0].contains("only Hopper has"),
        "{text}"
    );
    assert!(lines[1].starts_with("cluster: 801 ") && lines[1].contains("came with Hopper"), "{text}");
    assert!(lines[2].starts_with("plain: 0"), "{text}");
}

#[test]
fn a_kernel_without_ptx_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let Some(text) = observe_with("ptx", &[("SIMT_PTX", folder.path().to_str().unwrap())]) else { return };
    assert!(text.starts_with("launch: 218 ") && text.contains("(SIMT_PTX) has kernel ptx_words"), "{text}");
}

/// Requests are of warps: stores of words side by side, and of words that two lanes want of a bank.
#[test]
fn what_memory_moves_is_counted() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let body =
        ".loc\t1 7 3\nmov.u32 %r9, 1; shl.b32 %r1, %r0, 3; add.s32 %r1, %r1, %s; st.shared.u32 [%r1], %r9;";
    if observe_with_counts(body, file.path()).is_none() {
        return;
    }
    let lines: Vec<serde_json::Value> = std::fs::read_to_string(file.path())
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let counts: Vec<_> = lines
        .iter()
        .map(|line| {
            let numbers = ["requests", "moved", "least"].map(|key| line[key].as_u64().unwrap());
            (line["instruction"].as_str().unwrap(), line["space"].as_str().unwrap(), numbers)
        })
        .collect();
    assert_eq!(
        counts,
        [("st.shared.u32", "shared", [4, 8, 4]), ("st.global.u32", "global", [4, 16, 16])],
        "four warps"
    );
}
