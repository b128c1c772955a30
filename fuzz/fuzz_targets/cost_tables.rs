//! Cost tables from strangers: costs are finite and above zero, or the file is refused in one sentence.

#![no_main]

use libfuzzer_sys::fuzz_target;
use smart_run::control::CostTable;

fuzz_target!(|data: &[u8]| {
    thread_local! {
        static FOLDER: tempfile::TempDir = tempfile::tempdir().unwrap();
    }
    FOLDER.with(|folder| {
        let file = folder.path().join("costs.json");
        std::fs::write(&file, data).unwrap();
        match CostTable::read(&file) {
            Err(error) => assert!(error.is_input() && !error.to_string().contains('\n'), "{error}"),
            Ok(table) => {
                let cost = table.cost_model().unwrap();
                for tokens in [1, 8, 100, 5000] {
                    let us = cost.verify_us(tokens, [(tokens.min(64), 4096)]) + cost.draft_us(tokens, 4096);
                    assert!(us.is_finite() && us > 0.0, "{tokens} tokens: {us}");
                }
            }
        }
    });
});
