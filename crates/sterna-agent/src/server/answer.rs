//! Errors as answers, and requests whose errors are answers too.

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::StatusCode;
use axum::http::header::CONTENT_LENGTH;
use axum::response::{IntoResponse, Response};
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;
use sterna_api::{ApiError, ErrorCode, paths};

/// An error, answered with the status of its code.
#[derive(Debug)]
pub(super) struct Refusal(pub(super) ApiError);

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if status.is_server_error() {
            tracing::error!(code = ?self.0.code, error = %self.0, "request failed");
        } else {
            tracing::debug!(code = ?self.0.code, error = %self.0, "request refused");
        }
        (status, Json(self.0)).into_response()
    }
}

/// How long a body may take to come.
const BODY_MAX: Duration = Duration::from_secs(30);

/// Reads a request with its body, which has to come in time, and whose length is not waited for if it is said to be too
/// much.
async fn read<T, S: Send + Sync>(request: Request, state: &S) -> Result<T, Refusal>
where
    T: FromRequest<S>,
    Refusal: From<T::Rejection>,
{
    let length = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    if length.and_then(|length| length.parse().ok()) > Some(paths::REQUEST_BYTES_MAX) {
        let message = format!("a request has {} bytes at most", paths::REQUEST_BYTES_MAX);
        return Err(Refusal(ApiError::new(ErrorCode::TooLarge, message)));
    }
    match tokio::time::timeout(BODY_MAX, T::from_request(request, state)).await {
        Ok(read) => Ok(read?),
        Err(_) => {
            let message = format!("the body did not come within {} s", BODY_MAX.as_secs());
            Err(Refusal(ApiError::new(ErrorCode::TooSlow, message)))
        }
    }
}

/// A JSON body, which is an object.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let Json(Object(body)) = read(request, state).await?;
        Ok(Self(body))
    }
}

/// What is an object. What `serde` derives for a struct takes a list of its fields' values too.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Object)
    }
}

/// A body of bytes.
pub(super) struct Raw(pub(super) Bytes);

impl<S: Send + Sync> FromRequest<S> for Raw {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        Ok(Self(read(request, state).await?))
    }
}

/// The parameter in a path.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(Refusal))]
pub(super) struct Segment<T>(pub(super) T);

/// The parameters behind a path.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(Refusal))]
pub(super) struct Query<T>(pub(super) T);

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        unread(rejection.status(), rejection.body_text())
    }
}

impl From<BytesRejection> for Refusal {
    fn from(rejection: BytesRejection) -> Self {
        unread(rejection.status(), rejection.body_text())
    }
}

/// A body that cannot be read.
fn unread(status: StatusCode, words: String) -> Refusal {
    let code = match status {
        StatusCode::PAYLOAD_TOO_LARGE => ErrorCode::TooLarge,
        _ => ErrorCode::BadRequest,
    };
    Refusal(ApiError::new(code, words))
}

impl From<PathRejection> for Refusal {
    fn from(rejection: PathRejection) -> Self {
        Self(ApiError::new(ErrorCode::BadRequest, rejection.body_text()))
    }
}

impl From<QueryRejection> for Refusal {
    fn from(rejection: QueryRejection) -> Self {
        Self(ApiError::new(ErrorCode::BadRequest, rejection.body_text()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_not_waited_for_for_ever() {
        let begun: Result<_, std::io::Error> = Ok(Bytes::from_static(b"{"));
        let never = stream::StreamExt::chain(stream::iter([begun]), stream::pending());
        let request = Request::builder()
            .header("content-type", "application/json")
            .body(axum::body::Body::from_stream(never))
            .unwrap();
        let Err(refused) = Body::<serde_json::Map<_, _>>::from_request(request, &()).await else {
            panic!("half a body was read");
        };
        assert_eq!(refused.0.code, ErrorCode::TooSlow);
    }
}
