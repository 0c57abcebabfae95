//! `cargo xtask openapi`: the interface as a document.

use anyhow::{Context as _, Result};

use crate::paths;

/// Writes `docs/openapi.json`.
pub(crate) fn run_openapi() -> Result<()> {
    let path = paths::workspace().join("docs").join("openapi.json");
    let text = serde_json::to_string_pretty(&sterna_api::openapi::document())?;
    std::fs::write(&path, text + "\n")
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("interface: {}", path.display());
    Ok(())
}
