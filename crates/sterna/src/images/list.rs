//! `sterna images list`

use crate::cli::{Global, Output};
use crate::exit::Exit;
use crate::{output, units};
use std::time::{Duration, UNIX_EPOCH};
use sterna_api::{ImageView, paths};

/// Lists kept images.
pub(super) async fn run(global: &Global) -> anyhow::Result<Exit> {
    let images: Vec<ImageView> = global.connection.client()?.get(paths::IMAGES).await?;
    match global.output {
        Output::Json => output::json(&images)?,
        Output::Text => {
            let rows: Vec<Vec<String>> = images.iter().map(row).collect();
            output::table(&["GUEST", "ID", "KEPT", "SIZE"], &rows);
        }
    }
    Ok(Exit::Done)
}

fn row(image: &ImageView) -> Vec<String> {
    let kept = UNIX_EPOCH.checked_add(Duration::from_millis(image.kept_unix_ms));
    vec![
        image.name.clone().unwrap_or_else(|| "?".to_owned()),
        image.guest.to_string(),
        humantime::format_rfc3339_seconds(kept.unwrap_or(UNIX_EPOCH)).to_string(),
        units::size(image.bytes),
    ]
}
