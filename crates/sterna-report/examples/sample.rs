//! Writes a page about sample moves to standard output: `cargo run --example sample > page.html`;
//! with a number, about that move only.
#![forbid(unsafe_code)]

#[path = "../tests/samples/mod.rs"]
mod samples;

fn main() {
    let all = samples::all();
    let wanted = std::env::args().nth(1).and_then(|text| text.parse::<usize>().ok());
    let shown = wanted.and_then(|index| all.get(index..=index)).unwrap_or(&all);
    println!("{}", sterna_report::html(shown, &samples::about()));
}
