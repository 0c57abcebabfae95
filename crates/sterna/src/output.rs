//! What is printed: results on stdout, everything else on stderr.

use crate::exit::Exit;
use serde::Serialize;
use sterna_api::ApiError;

/// Prints a result as JSON.
pub(crate) fn json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Prints lines of columns, each as wide as its widest cell.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) {
    print!("{}", columns(head, rows));
}

pub(crate) fn columns(head: &[&str], rows: &[Vec<String>]) -> String {
    let head = std::iter::once(head.iter().map(ToString::to_string).collect::<Vec<_>>());
    let lines: Vec<Vec<String>> = head.chain(rows.iter().cloned()).collect();
    let count = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Prints why a command failed, once, with what to do next.
pub(crate) fn failure(error: &anyhow::Error) -> Exit {
    eprintln!("error: {error:#}");
    let Some(api) = error.downcast_ref::<ApiError>() else { return Exit::Error };
    for reason in &api.reasons {
        eprintln!("  reason: {reason}");
    }
    for hint in &api.hints {
        eprintln!("  hint: {hint}");
    }
    Exit::of_error(api)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_end_without_blanks() {
        let rows = [vec!["web-1".into(), "running".into()], vec!["a".into(), String::new()]];
        assert_eq!(columns(&["NAME", "STATE"], &rows), "NAME   STATE\nweb-1  running\na\n");
    }
}
