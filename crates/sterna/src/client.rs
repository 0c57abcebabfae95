//! The agent's interface, from the caller's side.

mod via;

use anyhow::Context as _;
use reqwest::{Method, RequestBuilder, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::PathBuf;
use std::time::Duration;
use sterna_api::{ApiError, ErrorCode, paths};
use sterna_engine::identity::Identity;
use via::Via;

/// How long a connection to an agent may take.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// The same through another host: that one may take as long to ask where the host is, and to reach it.
const CONNECT_VIA_MAX: Duration = Duration::from_secs(30);

/// Where a host's identity is if nobody says so.
pub(crate) const IDENTITY: &str = "/etc/sterna";

/// Which agent is talked to.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ConnectionArgs {
    /// Unix socket of the agent on this host
    #[arg(long, global = true, env = "STERNA_SOCKET", default_value = "/run/sterna/agent.sock")]
    socket: PathBuf,
    /// Agent on another host, by name or address, with a port if it is not 7400
    #[arg(long, global = true, value_name = "HOST[:PORT]", requires = "identity")]
    host: Option<String>,
    /// Ask --host, by its name, through this host: where only that one can reach it. Needs a user's certificate
    #[arg(long, global = true, value_name = "HOST[:PORT]", requires = "host")]
    via: Option<String>,
    /// Folder with ca.pem, host.pem and host.key, for --host
    #[arg(long, global = true, value_name = "DIR")]
    identity: Option<PathBuf>,
}

/// An agent.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    called: String,
    via: Option<Via>,
}

impl ConnectionArgs {
    /// The folder of this host's identity.
    pub(crate) fn identity_folder(&self) -> PathBuf {
        self.identity.clone().unwrap_or_else(|| IDENTITY.into())
    }

    /// The agent of this host, whichever the options name. Nothing is sent yet.
    pub(crate) fn local_client(&self) -> anyhow::Result<Client> {
        Self { host: None, ..self.clone() }.client()
    }

    /// The agent these options name. Nothing is sent yet.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        let builder = reqwest::Client::builder().connect_timeout(CONNECT_MAX).no_proxy();
        match (&self.host, &self.identity) {
            (Some(host), Some(folder)) => {
                let tls = Identity::load(folder)?.client();
                let mut builder = builder.tls_backend_preconfigured((*tls).clone());
                let via = self.via.as_ref().map(|via| Via::new(via, host, tls)).transpose()?;
                if let Some(via) = &via {
                    builder = builder.proxy(via.proxy()?).connect_timeout(CONNECT_VIA_MAX);
                }
                let (base, called) = (paths::https(host), host.clone());
                Ok(Client { http: builder.build()?, base, called, via })
            }
            _ => {
                // Never used, but a client without any would go looking for the system's.
                let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
                let tls = rustls::ClientConfig::builder_with_provider(provider)
                    .with_safe_default_protocol_versions()?
                    .with_root_certificates(rustls::RootCertStore::empty())
                    .with_no_client_auth();
                let builder = builder.tls_backend_preconfigured(tls);
                let http = builder.unix_socket(self.socket.as_path()).build()?;
                let called = self.socket.display().to_string();
                Ok(Client { http, base: "http://agent".into(), called, via: None })
            }
        }
    }
}

impl Client {
    /// Asks for something.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.answer(self.request(Method::GET, path)).await
    }

    /// Sends something.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        self.answer(self.request(Method::POST, path).json(body)).await
    }

    /// Puts something in the place of what is there.
    pub(crate) async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        self.answer(self.request(Method::PUT, path).json(body)).await
    }

    /// Ends something.
    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.answer(self.request(Method::DELETE, path)).await
    }

    /// Sends bytes.
    pub(crate) async fn post_bytes(&self, path: &str, bytes: Vec<u8>) -> anyhow::Result<()> {
        self.send(self.request(Method::POST, path).body(bytes)).await.map(drop)
    }

    /// Asks for a stream of bytes.
    pub(crate) async fn stream(&self, path: &str) -> anyhow::Result<Response> {
        self.send(self.request(Method::GET, path)).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    async fn answer<T: DeserializeOwned>(&self, request: RequestBuilder) -> anyhow::Result<T> {
        let response = self.send(request).await?;
        response.json().await.context("cannot read the agent's answer")
    }

    /// Sends a request; an answer that is an error becomes one.
    async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Err(self.unreachable(&error).await.into()),
        };
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.text().await.unwrap_or_default();
        let answered: Result<ApiError, _> = serde_json::from_str(&text);
        let other =
            |_| ApiError::new(ErrorCode::Internal, format!("{status} from {}", self.called));
        Err(answered.unwrap_or_else(other).into())
    }

    async fn unreachable(&self, error: &reqwest::Error) -> ApiError {
        if let Some(via) = self.via.as_ref().filter(|_| error.is_connect())
            && let Some(refused) = via.refusal().await
        {
            return refused;
        }
        let chain = ApiError::from_chain(ErrorCode::Internal, error);
        let through = self.via.as_ref().map_or_else(String::new, |via| format!(" through {via}"));
        let called = &self.called;
        let message = format!("cannot reach the agent at {called}{through}: {}", chain.message);
        ApiError::new(ErrorCode::Internal, message)
            .hint("see that it runs (`sterna agent`), and that --socket or --host names it")
    }
}

/// Whether an error says that the agent could not be reached or broke off, rather than answered.
pub(crate) fn is_broken_off(error: &anyhow::Error) -> bool {
    let away = |code| matches!(code, ErrorCode::Internal | ErrorCode::Unreachable);
    error.downcast_ref::<ApiError>().is_none_or(|error| away(error.code))
}
