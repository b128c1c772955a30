"""Function-preserving lifts of a small target and its EAGLE-3 drafter into a larger shape. docs/lifted-model.md has the derivation."""
