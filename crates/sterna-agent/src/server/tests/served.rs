//! The interface for a program that tries it out.

use super::*;
use sterna_pki::{Authority, Subject, Validity};
use tokio::net::TcpListener;
use tokio::process::Command;

/// The command that is run, by a shell; it finds the interface at `$URL`.
const COMMAND: &str = "STERNA_SERVE_FOR";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "is for a command that $STERNA_SERVE_FOR names: see `cargo xtask fuzz-interface`"]
async fn a_command_that_asks_for_anything_ends_well() {
    let command = std::env::var(COMMAND).expect("a command");
    let folder = tempfile::tempdir().unwrap();
    let identity = folder.path().join("id");
    let authority = Authority::create(&identity.join("authority")).unwrap();
    let subject = Subject { name: "a".into(), addresses: vec!["127.0.0.1".parse().unwrap()] };
    authority.issue(&subject, Validity::renewed()).unwrap().write(&identity).unwrap();
    let caller = Client::within(folder, Origin::Local);
    caller.start(ID, "web-1").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let served = axum::serve(listener, router(Arc::clone(&caller.agent), Origin::Local));
    tokio::spawn(served.into_future());
    let mut shell = Command::new("sh");
    let ended = shell.args(["-c", &command]).env("URL", url).status().await.unwrap();
    assert!(ended.success(), "{command}: {ended}");
    caller.get::<Vec<GuestView>>(paths::GUESTS).await;
}
