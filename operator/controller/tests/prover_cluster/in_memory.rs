//! An API server in memory: keeps what it is told, counts the calls, refuses what it shall refuse.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::client::Body;
use kube::runtime::reflector::store::{Store, store};
use kube::runtime::watcher::Event;
use kube::{Client, Resource};
use prover_controller::Caches;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

#[derive(Default)]
struct Kept {
    objects: BTreeMap<String, Value>,
    calls: Vec<String>,
    refused: Option<&'static str>,
    version: u64,
}

/// The server; clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct InMemory(Arc<Mutex<Kept>>);

impl InMemory {
    pub(crate) fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        Client::new(service, "default")
    }

    /// The calls since the last look: method, path, and the manager and dry run where there are any.
    pub(crate) fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().calls)
    }

    /// Refuses every write whose path contains this.
    pub(crate) fn refuse(&self, path: Option<&'static str>) {
        self.0.lock().unwrap().refused = path;
    }

    /// The object at a path.
    pub(crate) fn object(&self, path: &str) -> Option<Value> {
        self.0.lock().unwrap().objects.get(path).cloned()
    }

    /// Writes an object as somebody else.
    pub(crate) fn change(&self, path: &str, change: impl FnOnce(&mut Value)) {
        let mut kept = self.0.lock().unwrap();
        let object = kept.objects.get_mut(path).expect("an object at that path");
        let before = object["spec"].clone();
        change(object);
        let spec_changed = object["spec"] != before;
        kept.touch(path, spec_changed);
    }

    /// What watches would have filled caches with.
    pub(crate) fn caches(&self) -> Caches {
        let kept = self.0.lock().unwrap();
        Caches {
            deployments: kept.cache("/deployments/"),
            services: kept.cache("/services/"),
            config_maps: kept.cache("/configmaps/"),
            secrets: kept.cache("/secrets/"),
            service_accounts: kept.cache("/serviceaccounts/"),
            roles: kept.cache("/roles/"),
            role_bindings: kept.cache("/rolebindings/"),
            disruption_budgets: kept.cache("/poddisruptionbudgets/"),
            daemon_sets: kept.cache("/daemonsets/"),
            network_policies: kept.cache("/networkpolicies/"),
            ..Caches::empty()
        }
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let path = parts.uri.path().to_owned();
        let parameters: BTreeMap<String, String> =
            url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes())
                .into_owned()
                .collect();
        let mut kept = self.0.lock().unwrap();
        let mut call = format!("{} {path}", parts.method);
        if let Some(manager) = parameters.get("fieldManager") {
            call.push_str(&format!(" {manager}"));
        }
        let dry_run = parameters.contains_key("dryRun");
        if dry_run {
            call.push_str(" dry-run");
        }
        kept.calls.push(call);
        if parts.method != Method::GET && kept.refused.is_some_and(|refused| path.contains(refused)) {
            return failure(
                StatusCode::UNPROCESSABLE_ENTITY,
                "Invalid",
                "it is refused by the test",
            );
        }
        match parts.method {
            Method::GET => match kept.objects.get(&path) {
                Some(object) => answer(object),
                None => failure(StatusCode::NOT_FOUND, "NotFound", "it does not exist"),
            },
            Method::POST => answer(&body),
            Method::PATCH if dry_run => answer(&body),
            Method::PATCH => answer(&kept.patch(path.trim_end_matches("/status"), &body)),
            Method::DELETE => match kept.objects.remove(&path) {
                Some(object) => answer(&object),
                None => failure(StatusCode::NOT_FOUND, "NotFound", "it does not exist"),
            },
            _ => failure(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "no such call"),
        }
    }
}

impl Kept {
    fn patch(&mut self, path: &str, body: &Value) -> Value {
        let before = self.objects.get(path).cloned();
        let mut after = before
            .clone()
            .unwrap_or_else(|| json!({ "metadata": { "uid": format!("uid-of-{path}") } }));
        merge(&mut after, body);
        let spec_changed = before.as_ref().map(|before| &before["spec"]) != Some(&after["spec"]);
        let changed = before.as_ref() != Some(&after);
        self.objects.insert(path.to_owned(), after);
        if changed {
            self.touch(path, spec_changed);
        }
        self.objects[path].clone()
    }

    fn touch(&mut self, path: &str, spec_changed: bool) {
        self.version += 1;
        let version = self.version.to_string();
        let object = self.objects.get_mut(path).expect("it was just written");
        object["metadata"]["resourceVersion"] = json!(version);
        if spec_changed && !path.contains("/services/") {
            let generation = object["metadata"]["generation"].as_i64().unwrap_or_default();
            object["metadata"]["generation"] = json!(generation + 1);
        }
    }

    fn cache<K>(&self, part: &str) -> Store<K>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + 'static,
    {
        let (reader, mut writer) = store();
        writer.apply_watcher_event(&Event::Init);
        for (path, object) in self.objects.iter().filter(|(path, _)| path.contains(part)) {
            let object = serde_json::from_value(object.clone());
            writer.apply_watcher_event(&Event::InitApply(
                object.unwrap_or_else(|error| panic!("{path}: {error}")),
            ));
        }
        writer.apply_watcher_event(&Event::InitDone);
        reader
    }
}

/// What applying comes to, as long as one manager owns what it applies.
fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

fn answer(object: &Value) -> Response<Body> {
    Response::new(Body::from(object.to_string().into_bytes()))
}

fn failure(code: StatusCode, reason: &str, message: &str) -> Response<Body> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
    });
    let mut response = answer(&status);
    *response.status_mut() = code;
    response
}
