//! Asking a host through another one, which passes bytes on: an HTTPS proxy.
//!
//! The HTTP client says of a proxy that refuses no more than that. So it is asked once more, and what it answers is for
//! the user.

use anyhow::Context as _;
use http_body_util::{BodyExt as _, Limited};
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use reqwest::Proxy;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::fmt;
use std::sync::Arc;
use sterna_api::{ApiError, ErrorCode, address, paths};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Bytes of an answer at most.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// A host that passes on to another.
#[derive(Clone, Debug)]
pub(super) struct Via {
    host: String,
    port: u16,
    /// The other host, with its port.
    target: String,
    tls: Arc<ClientConfig>,
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&address::join(&self.host, self.port))
    }
}

impl Via {
    /// A host that is to pass on to `target`. Nothing is sent yet.
    pub(super) fn new(host: &str, target: &str, tls: Arc<ClientConfig>) -> anyhow::Result<Self> {
        let split = |text: &str| {
            let (host, port) = address::split(text, paths::API_PORT).map_err(anyhow::Error::msg)?;
            Ok::<_, anyhow::Error>((host.to_owned(), port))
        };
        let (host, port) = split(host)?;
        let (other, other_port) = split(target)?;
        Ok(Self { host, port, target: address::join(&other, other_port), tls })
    }

    /// The same for an HTTP client.
    pub(super) fn proxy(&self) -> reqwest::Result<Proxy> {
        Proxy::all(format!("https://{self}"))
    }

    /// Why it does not pass on, or why that cannot be asked; `None` if it would.
    pub(super) async fn refusal(&self) -> Option<ApiError> {
        match tokio::time::timeout(super::CONNECT_VIA_MAX, self.asked()).await {
            Ok(Ok(refusal)) => refusal,
            Ok(Err(error)) => Some(self.unreachable(&format!("{error:#}"))),
            Err(_) => Some(self.unreachable("no answer in time")),
        }
    }

    fn unreachable(&self, why: &str) -> ApiError {
        let message = format!("cannot reach the agent at {self}: {why}");
        ApiError::new(ErrorCode::Internal, message)
            .hint("see that it runs (`sterna agent`), and that --via names it")
    }

    /// Asks to be passed on.
    async fn asked(&self) -> anyhow::Result<Option<ApiError>> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        let name = ServerName::try_from(self.host.clone())?;
        let stream = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let served = tokio::spawn(connection);
        let request = Request::builder().method(Method::CONNECT).uri(&self.target);
        let request = request.header(HOST, &self.target).body(String::new())?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        if status.is_success() {
            served.abort();
            return Ok(None);
        }
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(anyhow::Error::from_boxed).context("cannot read the answer")?;
        let refused = serde_json::from_slice(&body.to_bytes());
        // An agent of before it could pass on says that there is no such path; something else says anything.
        Ok(Some(refused.with_context(|| format!("{status} and no reason"))?))
    }
}
