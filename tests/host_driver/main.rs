//! The host driver keeps its promises: every kind of bug it claims to catch is planted in its self-test
//! (`kernels/host/selftest`), and must be caught and named. A process per case: a failed kernel leaves its context
//! unusable, as on a GPU, and the environment selects modes.

#[allow(dead_code)]
#[path = "../../build/compile.rs"]
mod compile;
mod hopper;
mod ptx;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const FLAGS: &[&str] =
    &["-std=c++20", "-O1", "-w", "-fno-strict-aliasing", "-fvisibility=hidden", "-pthread", "-Ikernels"];

/// Builds the self-test from the driver's sources; objects are kept by content. None without a C++ compiler.
fn selftest() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    BUILT.get_or_init(build).as_deref()
}

fn build() -> Option<PathBuf> {
    let compiler = match std::env::var_os("CXX") {
        Some(path) => PathBuf::from(path),
        None => compile::on_path("g++").or_else(|| compile::on_path("c++"))?,
    };
    std::env::set_current_dir(env!("CARGO_MANIFEST_DIR")).unwrap();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("host-driver");
    std::fs::create_dir_all(&folder).unwrap();
    let flags: Vec<String> = FLAGS.iter().map(|&flag| flag.to_owned()).collect();
    let mut sources = compile::files(Path::new("kernels/host"), &["cpp"], false);
    sources.extend(compile::files(Path::new("kernels/host/ptx"), &["cpp"], false));
    sources.extend(compile::files(Path::new("kernels/host/selftest"), &["cpp", "cu"], false));
    let (mut jobs, mut objects) = (Vec::new(), Vec::new());
    for source in &sources {
        let hash = compile::content_hash(&flags, &[source], None);
        let name = source.with_extension("").to_string_lossy().replace('/', "-");
        let object = folder.join(format!("{name}-{hash}.o"));
        let mut args = flags.clone();
        args.extend(["-x", "c++", "-c"].map(String::from));
        args.push(source.to_string_lossy().into_owned());
        jobs.push(compile::Job { program: compiler.clone(), args, output: object.clone() });
        objects.push(object.to_string_lossy().into_owned());
    }
    compile::run(jobs).expect("the self-test compiles");
    let paths: Vec<&Path> = sources.iter().map(PathBuf::as_path).collect();
    let executable = folder.join(format!("selftest-{}", compile::content_hash(&flags, &paths, None)));
    let mut args: Vec<String> = ["-pthread", "-rdynamic"].map(String::from).to_vec();
    args.extend(objects);
    args.push("-ldl".into());
    compile::run(vec![compile::Job { program: compiler, args, output: executable.clone() }])
        .expect("and links");
    Some(executable)
}

/// What a case observed, line by line. Empty if there is nothing to run it with.
fn observe_with(case: &str, environment: &[(&str, &str)]) -> Option<String> {
    let Some(executable) = selftest() else {
        eprintln!("skipped: the host driver needs a C++ compiler");
        return None;
    };
    let mut command = Command::new(executable);
    for name in [
        "SIMT_SEED",
        "SIMT_LAZY",
        "SIMT_CLOCK",
        "SIMT_THREADS",
        "SIMT_NATIVE",
        "SIMT_DUMP",
        "SIMT_PTX",
        "SIMT_PTX_COUNTS",
        "SIMT_SM",
    ] {
        command.env_remove(name);
    }
    let output = command.arg(case).envs(environment.iter().copied()).output().expect("the self-test starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{case}: {:?}\n{text}", output.status);
    Some(text)
}

/// Asserts that the case's output has each of these lines, or lines that begin so and contain the rest: `"a ... b"`.
#[track_caller]
fn expect_with(case: &str, environment: &[(&str, &str)], expected: &[&str]) {
    let Some(text) = observe_with(case, environment) else { return };
    for pattern in expected {
        let mut parts = pattern.split(" ... ");
        let head = parts.next().unwrap_or_default();
        let rest: Vec<&str> = parts.collect();
        let found =
            text.lines().any(|line| line.starts_with(head) && rest.iter().all(|part| line.contains(part)));
        assert!(found, "{case} {environment:?}: no line is like {pattern:?} in\n{text}");
    }
}

#[track_caller]
fn expect(case: &str, expected: &[&str]) {
    expect_with(case, &[], expected);
}

// ---- healthy kernels never raise an alarm ----------------------------------------------------------------------

#[test]
fn healthy_kernels_are_right_under_every_schedule() {
    for threads in ["1", "4"] {
        let Some(text) = observe_with("healthy", &[("SIMT_THREADS", threads)]) else { return };
        assert_eq!(text.lines().filter(|line| line.ends_with(": right")).count(), 21, "{text}");
    }
}

#[test]
fn sixteen_bit_conversions_are_exact() {
    expect("conversions", &["wrong: 0"]);
}

// ---- bugs inside a kernel --------------------------------------------------------------------------------------

#[test]
fn missing_barrier_is_found_by_random_schedules() {
    expect("missing_barrier", &["caught: 20 of 20"]);
}

#[test]
fn short_async_copy_wait_reads_poison() {
    expect("short_wait", &["pipeline: wrong"]);
}

#[test]
fn unwritten_shared_memory_is_nan() {
    expect("uninitialised_shared", &["values: 1 nan"]);
}

#[test]
fn shared_memory_overruns_name_the_variable() {
    let kernel = "launch: 719 simt: write out of bounds of ... dynamic shared memory (256 bytes), 0 bytes past its end ... (kernel bug_dynamic_overrun, block (";
    expect("dynamic_overrun", &[kernel]);
    expect(
        "static_overrun",
        &["launch: 719 ... shared variable `staging` (128 bytes) ... kernel bug_static_overrun"],
    );
}

#[test]
fn divergent_barrier_says_who_waits_where() {
    expect(
        "divergent_barrier",
        &[
            "launch: 719 simt: divergent synchronisation ... t0..39 in __syncthreads, t40..49 in __syncwarp, t50..63 exited ... (kernel bug_divergent_barrier, block (0,0,0))",
        ],
    );
}

#[test]
fn lanes_in_different_operations_are_named() {
    expect(
        "mixed_operations",
        &["launch: 719 ... shuffle and vote ... bug_mixed_operations, block (0,0,0), thread 16"],
    );
    expect(
        "exited_lane",
        &["launch: 719 ... a lane exits while its warp waits for it in shuffle ... thread 31"],
    );
}

#[test]
fn misaligned_async_copy_is_refused() {
    expect("misaligned_copy", &["launch: 719 ... cp.async: address is not aligned ... bug_misaligned"]);
}

#[test]
fn wild_accesses_end_the_launch_and_not_the_process() {
    let fault = "launch: 719 simt: illegal memory access at address 0x10 ... (kernel bug_wild_pointer, block ( ... thread 5)";
    expect("wild_pointer", &[fault, "afterwards: right"]);
    expect("stack_overflow", &["launch: 719 simt: stack overflow of a thread ... bug_stack_overflow"]);
}

// ---- launches --------------------------------------------------------------------------------------------------

#[test]
fn launch_limits_are_enforced() {
    expect(
        "limits",
        &[
            "threads: 1 ... 1025 threads; at most 1024 are possible (kernel empty_emulated)",
            "grid: 1 ... the grid has no blocks",
            "shared: 1 ... 60000 bytes of dynamic shared memory, but only 49152 ... MAX_DYNAMIC_SHARED_SIZE_BYTES",
            "attribute too large: 1 ... at most 101376",
            "shared with attribute: 0",
            "missing argument: 1 ... argument 0 is missing (kernel empty_emulated)",
            "unknown kernel: 500 ... no_such_kernel",
            "mismatched twin: 500 ... native twin's parameters differ from those of kernel mismatched",
            "static and dynamic: 719 ... shared variable `values` makes static and dynamic shared memory exceed",
        ],
    );
}

#[test]
fn threads_of_overlapping_launches_wait_for_those_before() {
    expect(
        "overlap",
        &[
            "apart: 0",
            "attribute: 801 ... cuLaunchKernelEx: launch attribute 2",
            "forbidden: 0",
            "overlapping: 719 ... without wait_for_predecessors in a launch that overlaps those before (kernel bug_early_exit, block (0,0,0), thread 1)",
        ],
    );
}

#[test]
fn parameter_lists_are_reported() {
    let list = [
        "0: 8 at 0",
        "1: 4 at 8",
        "2: 8 at 16",
        "3: 4 at 24",
        "4: 24 at 32",
        "5: 1 at 56",
        "end: 1 ... 6 parameters",
    ];
    expect("parameters", &list);
}

#[test]
fn entry_points_are_found_by_name() {
    expect("entry_points", &["known: 0", "same: 1", "unknown: 500 ... no cuNoSuchCall"]);
}

#[test]
fn an_error_stays_until_reset() {
    let all = ["launch: 719", "later launch: 719", "later sync: 719 ... bug_exited_lane", "after reset: 0"];
    expect("sticky_error", &all);
}

#[test]
fn native_twins_can_be_switched_off() {
    expect("native_twin", &["native 1: 1006", "native 0: 6"]);
}

// ---- memory ----------------------------------------------------------------------------------------------------

#[test]
fn pointers_must_be_live_device_memory() {
    expect(
        "foreign_pointer",
        &["launch: 700 simt: argument 0 points to no device allocation ... (kernel fill)"],
    );
    let freed = [
        "launch: 700 simt: argument 0 points into freed device memory (400 bytes ... (kernel copy_to)",
        "free: 1 ... was freed before",
    ];
    expect("freed_pointer", &freed);
    expect(
        "pointer_in_struct",
        &["live: 0", "freed: 700 simt: argument 0 (field at byte 8) points into freed ... copy_pair"],
    );
}

#[test]
fn red_zones_catch_writes_around_an_allocation() {
    expect(
        "red_zones",
        &[
            "in bounds: 0",
            "past the end, at synchronise: 700 ... 400 bytes, 0 bytes past its end; the last kernel that was given it is store_at",
            "before the start, at free: 700 ... before its start",
        ],
    );
}

#[test]
fn copies_stay_inside_their_allocation() {
    expect(
        "copy_range",
        &[
            "too long: 1 ... of 65 bytes, but the allocation ends after 64",
            "set too long: 1",
            "freed: 1 ... freed",
        ],
    );
    expect("poisoned_memory", &["fresh: -1"]);
}

// ---- order of work ---------------------------------------------------------------------------------------------

#[test]
fn lazy_mode_shows_an_engine_that_does_not_wait() {
    expect("early_read", &["early: 42", "waited: 42"]);
    expect_with("early_read", &[("SIMT_LAZY", "1")], &["early: -1", "waited: 42"]);
    expect_with("source_reused", &[("SIMT_LAZY", "1")], &["pinned: 2, pageable: 1"]);
    expect_with(
        "freed_while_queued",
        &[("SIMT_LAZY", "1")],
        &["sync: 700 ... freed device memory ... kernel fill"],
    );
}

#[test]
fn lazy_mode_shows_a_missing_wait_between_streams() {
    expect("missing_wait", &["lazy 1: 1 without the wait"]);
    let Some(text) = observe_with("missing_wait", &[]) else { return };
    assert!(text.contains("false alarms: 0"), "{text}");
}

#[test]
fn lazy_mode_keeps_the_order_that_cuda_promises() {
    let Some(text) = observe_with("default_stream_order", &[]) else { return };
    assert_eq!(text, "42\n".repeat(5));
    expect_with("polling", &[("SIMT_LAZY", "1")], &["polls: 2, stream: 0"]);
}

#[test]
fn calls_that_break_a_capture_are_named() {
    expect(
        "capture_refusals",
        &[
            "alloc: 900 simt: cuMemAlloc while a stream is capturing",
            "end: 901 ... invalidated by: cuMemAlloc",
            "stream sync: 900 simt: cuStreamSynchronize on a capturing stream",
            "end: 901 ... invalidated by: cuStreamSynchronize",
            "module: 900 simt: cuModuleLoadData while a stream is capturing",
            "end: 901 ... invalidated by: cuModuleLoadData",
            "said before: 0",
            "relaxed module: 0",
            "whole end: 0",
            "relaxed alloc: 0",
            "async alloc: 900",
        ],
    );
    expect("abandoned_capture", &["alloc: 0"]);
    expect("capture_isolation", &["outside event: 905", "end: 901", "unjoined: 904"]);
}

#[test]
fn captured_events_cannot_be_read_but_external_ones_can() {
    expect(
        "captured_event",
        &["query: 907 ... EXTERNAL", "elapsed: 907", "external query: 0", "external elapsed: 0"],
    );
}

#[test]
fn graphs_replay_their_captured_arguments_in_any_legal_order() {
    for lazy in ["0", "1", "7"] {
        expect_with("graph_replay", &[("SIMT_LAZY", lazy)], &["captured only: 0", "right: 20 of 20"]);
    }
}

#[test]
fn failures_on_purpose_come_when_they_are_due_and_pass() {
    expect_with(
        "failure_on_purpose",
        &[("SIMT_FAIL", "fill:2:2")],
        &[
            "from the environment: 0 701 701 0",
            "by a call: 0 701 0",
            "another kernel: 0",
            "launch: 0",
            "allocation: 2",
            "the next: 0",
        ],
    );
}

// ---- virtual clock ---------------------------------------------------------------------------------------------

const TABLE: &str = r#"{"rules": [
    {"kernel": "fill", "where": {"1": 7}, "by": 2, "points": [[1, 31.0], [8, 31.0], [16, 31.4]], "interpolation": "step"},
    {"kernel": "fill", "by": 2, "points": [[0, 10], [8, 20.5]]}],
    "default_us": 1.3}"#;

fn table(name: &str, text: &str) -> String {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).unwrap();
    path.to_string_lossy().into_owned()
}

#[test]
fn virtual_time_is_exact_in_every_mode() {
    let path = table("clock.json", TABLE);
    for lazy in ["0", "1", "5"] {
        expect_with(
            "clock_times",
            &[("SIMT_CLOCK", &path), ("SIMT_LAZY", lazy)],
            &[
                "step: 31.000 31.000 31.400 31.400",
                "linear: 15.250, default: 1.300",
                "joined: 31.400",
                "host: 172.750",
            ],
        );
    }
}

#[test]
fn bad_cost_tables_say_what_is_wrong() {
    let bad = [
        ("{\"rules\": [{\"kernel\": \"fill\"}]}", "rules[0] needs either \"us\" or \"by\" and \"points\""),
        ("{\"rules\": [{\"kernel\": \"fil\", \"us\": 1}]}", "no kernel is named fil"),
        (
            "{\"rules\": [{\"kernel\": \"scale\", \"by\": 3, \"points\": [[1, 2]]}]}",
            "index of an integer argument of scale",
        ),
        ("{\n\"default_us\": 1,\n}", "line 3"),
        ("{\"default\": 1}", "unknown key \"default\""),
        ("{\"default_us\": 01}", "line 1"),
        ("{\"default_us\": -1}", "default_us is not a number >= 0"),
    ];
    for (i, (text, message)) in bad.iter().enumerate() {
        let path = table(&format!("bad-{i}.json"), text);
        let Some(text) = observe_with("clock_times", &[("SIMT_CLOCK", &path)]) else { return };
        assert!(text.starts_with("cuInit: 1 simt: SIMT_CLOCK: ") && text.contains(message), "{text}");
    }
}

// ---- dumps -----------------------------------------------------------------------------------------------------

#[test]
fn launches_are_dumped_once_per_shape() {
    let folder = tempfile::tempdir().unwrap();
    expect_with("everything", &[("SIMT_DUMP", folder.path().to_str().unwrap())], &["1", "10"]);
    if selftest().is_none() {
        return;
    }
    let mut names: Vec<String> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().split('-').next().unwrap().to_owned())
        .collect();
    names.sort();
    let expected = [
        "copy_pair",
        "healthy_bulk",
        "healthy_counts",
        "healthy_last_block",
        "healthy_mma_bf16",
        "healthy_pipeline",
        "healthy_sum",
        "healthy_transpose",
        "healthy_wgmma",
    ];
    assert_eq!(names, expected);
}

// ---- sanitizers ------------------------------------------------------------------------------------------------

/// Builds the driver twice more, a minute each; `cargo test --test host_driver -- --ignored` runs it.
#[test]
#[ignore = "builds the sanitizer variants"]
fn sanitizers_name_the_line() {
    let place_in = |file: &str, text: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/host/selftest");
        let source = std::fs::read_to_string(folder.join(file)).unwrap();
        format!("{file}:{}", 1 + source.lines().position(|line| line.contains(text)).unwrap())
    };
    let place = |text| place_in("planted.cu", text);
    let bulk_place = |text| place_in("planted_bulk.cu", text);
    let cases = [
        ("thread", "block_race", "data race", place("out[0] += 1")),
        ("thread", "missing_barrier_once", "data race", place("if (t % 32 == 0) partial")),
        ("thread", "wgmma_early_refill", "data race", place("WGMMA_SUM(bug_wgmma_early_refill")),
        ("thread", "bulk_early_refill_once", "data race", bulk_place("sums[i] +=")),
        ("thread", "bulk_no_barrier_once", "data race", bulk_place("BULK_SUM(bug_bulk_no_barrier")),
        ("thread", "multicast_early_refill_often", "data race", bulk_place("// of the cluster")),
        ("thread", "cluster_no_sync", "data race", "planted_cluster.cu:".into()),
        ("thread", "cluster_only_meets", "data race", "planted_cluster.cu:".into()),
        ("address", "dynamic_overrun", "use-after-poison", place("buffer[threadIdx.x + 1] = 1")),
        ("address", "red_zones", "use-after-poison", place("out[index] = value")),
        ("address", "static_overrun", "index 32 out of bounds", place("staging[threadIdx.x + 1] = 1")),
    ];
    for (sanitizer, case, kind, line) in cases {
        let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tools/sanitize.sh"))
            .args([sanitizer, "selftest", case])
            .output()
            .unwrap();
        let report = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && report.contains(kind) && report.contains(&line),
            "{case}: {line}\n{report}"
        );
    }
    for (sanitizer, case) in
        ["thread", "address"].into_iter().flat_map(|s| [(s, "everything"), (s, "multicast_once")])
    {
        let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tools/sanitize.sh"))
            .args([sanitizer, "selftest", case])
            .output()
            .unwrap();
        assert!(output.status.success(), "{sanitizer} {case}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
