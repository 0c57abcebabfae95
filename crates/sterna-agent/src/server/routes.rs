//! Handlers for the operations of the interface: for each of them one, and for nothing else.

use crate::agent::Agent;
use axum::Router;
use axum::handler::Handler;
use axum::routing::{MethodFilter, on};
use std::sync::Arc;
use sterna_api::{Method, OPERATIONS, Operation, operation};

/// A router in the making.
pub(super) struct Routes {
    router: Router<Arc<Agent>>,
    /// What nobody serves yet.
    left: Vec<&'static Operation>,
}

impl Routes {
    pub(super) fn new() -> Self {
        Self { router: Router::new(), left: OPERATIONS.iter().collect() }
    }

    pub(super) fn get<T: 'static>(self, path: &str, by: impl Handler<T, Arc<Agent>>) -> Self {
        self.serve(Method::Get, path, by)
    }

    pub(super) fn post<T: 'static>(self, path: &str, by: impl Handler<T, Arc<Agent>>) -> Self {
        self.serve(Method::Post, path, by)
    }

    pub(super) fn put<T: 'static>(self, path: &str, by: impl Handler<T, Arc<Agent>>) -> Self {
        self.serve(Method::Put, path, by)
    }

    pub(super) fn delete<T: 'static>(self, path: &str, by: impl Handler<T, Arc<Agent>>) -> Self {
        self.serve(Method::Delete, path, by)
    }

    fn serve<T: 'static>(
        mut self,
        method: Method,
        path: &str,
        by: impl Handler<T, Arc<Agent>>,
    ) -> Self {
        let known = operation(method.as_str(), path);
        assert!(known.is_some(), "{} {path} is not in the table of operations", method.as_str());
        self.left.retain(|left| (left.method, left.path) != (method, path));
        Self { router: self.router.route(path, on(filter(method), by)), left: self.left }
    }

    /// The router, which serves every operation.
    pub(super) fn all(self) -> Router<Arc<Agent>> {
        let left: Vec<_> = self.left.iter().map(|left| left.name).collect();
        assert!(left.is_empty(), "nobody serves {}", left.join(", "));
        self.router
    }
}

fn filter(method: Method) -> MethodFilter {
    match method {
        Method::Get => MethodFilter::GET,
        Method::Post => MethodFilter::POST,
        Method::Put => MethodFilter::PUT,
        Method::Patch => MethodFilter::PATCH,
        Method::Delete => MethodFilter::DELETE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::catch_unwind;
    use sterna_api::paths;

    async fn nothing() {}

    #[test]
    fn what_is_not_in_the_table_is_not_served_and_what_is_must_be() {
        let refused = |made: fn() -> Routes| {
            let panic = catch_unwind(|| made().all()).err().unwrap();
            panic.downcast::<String>().map(|words| *words).unwrap_or_default()
        };
        let words = refused(|| Routes::new().put(paths::GUESTS, nothing));
        assert_eq!(words, "PUT /v1/guests is not in the table of operations");
        let words = refused(|| Routes::new().get(paths::HOST, nothing));
        assert!(words.starts_with("nobody serves measure, watchEvents"), "{words}");
        assert!(!words.contains("showHost"), "{words}");
    }
}
