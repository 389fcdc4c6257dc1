fn main() { println!("{}", risc0_zkvm::VERSION); }
