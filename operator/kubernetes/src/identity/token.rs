//! What a ServiceAccount token says, and whether it may be believed. Pure: keys and time are parameters.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;

/// Longest token in bytes; those of Kubernetes have about 1,200.
pub(super) const TOKEN_BYTES: usize = 16 << 10;
/// Difference of clocks that is tolerated, in seconds.
pub(super) const LEEWAY_SECONDS: u64 = 60;
/// Keys of one issuer.
const KEYS: usize = 64;

/// Whose tokens are taken, and for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expectations {
    /// Namespace of the cluster: workers of another one are strangers, whatever they are called.
    pub namespace: String,
    /// ServiceAccount of the workers.
    pub worker_account: String,
    /// Audience of the workers' tokens.
    pub worker_audience: String,
    /// The operator's ServiceAccount, as `system:serviceaccount:<namespace>:<name>`.
    pub operator_subject: String,
    /// Audience of the operator's tokens.
    pub operator_audience: String,
}

/// Whom a token was issued to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A pod of the cluster's workers.
    Worker {
        /// Name of the pod.
        pod_name: String,
        /// UID of the pod.
        pod_uid: String,
    },
    /// The operator.
    Operator,
}

/// Why a token is worth nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// More bytes than any token has.
    #[error("it has {0} bytes, more than {TOKEN_BYTES}")]
    TooLong(usize),
    /// It is no token at all, or a part of one.
    #[error("it is not a signed JSON web token")]
    Malformed,
    /// Signed in a way that is not taken: not at all, or with a shared secret.
    #[error("it is signed with {0:?}, where only RS256 and ES256 are taken")]
    Algorithm(String),
    /// No such key is known.
    #[error("it is signed with a key that the API server does not know")]
    UnknownKey,
    /// The signature is another one.
    #[error("its signature is wrong")]
    Signature,
    /// Another issuer's.
    #[error("its issuer is not this cluster's API server")]
    Issuer,
    /// Its time is over.
    #[error("it has expired")]
    Expired,
    /// Its time has not come.
    #[error("it is not valid yet")]
    NotYetValid,
    /// Made out to somebody else.
    #[error("its audience is not this coordinator: the token's projection names another one")]
    Audience,
    /// Of another namespace.
    #[error("it belongs to a ServiceAccount of another namespace")]
    Namespace,
    /// Of another ServiceAccount.
    #[error("it belongs to another ServiceAccount than that of the workers")]
    Account,
    /// Not bound to a pod.
    #[error("it is not bound to a pod: use a projected token")]
    NoPod,
}

impl TokenError {
    /// Short name for metrics.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            TokenError::TooLong(_) => "token_too_long",
            TokenError::Malformed => "token_malformed",
            TokenError::Algorithm(_) => "token_algorithm",
            TokenError::UnknownKey => "token_unknown_key",
            TokenError::Signature => "token_signature",
            TokenError::Issuer => "token_issuer",
            TokenError::Expired => "token_expired",
            TokenError::NotYetValid => "token_not_yet_valid",
            TokenError::Audience => "token_audience",
            TokenError::Namespace => "token_namespace",
            TokenError::Account => "token_account",
            TokenError::NoPod => "token_without_pod",
        }
    }
}

/// One key.
#[derive(Clone, Debug)]
struct Key {
    algorithm: Algorithm,
    key: DecodingKey,
}

/// The keys of an issuer.
#[derive(Clone, Debug, Default)]
pub struct KeySet {
    issuer: String,
    keys: BTreeMap<String, Key>,
}

impl KeySet {
    /// The keys of a set that verify RS256 or ES256; others are left out, so that no token chooses how it is judged.
    #[must_use]
    pub fn new(issuer: String, set: &JwkSet) -> KeySet {
        let mut keys = BTreeMap::new();
        for jwk in set.keys.iter().take(KEYS) {
            let algorithm = match &jwk.algorithm {
                AlgorithmParameters::RSA(_) => Algorithm::RS256,
                AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => {
                    Algorithm::ES256
                }
                _ => continue,
            };
            if let (Some(id), Ok(key)) = (&jwk.common.key_id, DecodingKey::from_jwk(jwk)) {
                keys.insert(id.clone(), Key { algorithm, key });
            }
        }
        KeySet { issuer, keys }
    }

    /// Whether there is nothing to verify with.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether a key is among them.
    #[must_use]
    pub fn knows(&self, id: &str) -> bool {
        self.keys.contains_key(id)
    }

    /// Verifies the signature of a token and everything that it says. `now` is in seconds since the Unix epoch.
    ///
    /// # Errors
    /// The token is worth nothing here.
    pub fn verify(&self, token: &str, expected: &Expectations, now: u64) -> Result<Subject, TokenError> {
        let header = Header::of(token)?;
        let known = header
            .kid
            .as_deref()
            .and_then(|id| self.keys.get(id))
            .ok_or(TokenError::UnknownKey)?;
        if known.algorithm != header.algorithm {
            return Err(TokenError::Signature);
        }
        // Only the signature is left to the library: what the token says is judged below, at a time of our own.
        let mut validation = Validation::new(known.algorithm);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        let data =
            jsonwebtoken::decode::<Claims>(token, &known.key, &validation).map_err(|error| {
                match error.kind() {
                    jsonwebtoken::errors::ErrorKind::Json(_) | jsonwebtoken::errors::ErrorKind::Base64(_) => {
                        TokenError::Malformed
                    }
                    _ => TokenError::Signature,
                }
            })?;
        if data.claims.iss != self.issuer {
            return Err(TokenError::Issuer);
        }
        data.claims.subject(expected, now)
    }
}

/// The part of a token's header that counts.
#[derive(Debug)]
pub(super) struct Header {
    algorithm: Algorithm,
    pub(super) kid: Option<String>,
}

impl Header {
    /// Reads the header and checks the token's form, without believing anything.
    pub(super) fn of(token: &str) -> Result<Header, TokenError> {
        #[derive(Deserialize)]
        struct Raw {
            alg: String,
            kid: Option<String>,
        }
        if token.len() > TOKEN_BYTES {
            return Err(TokenError::TooLong(token.len()));
        }
        let parts: Vec<&str> = token.splitn(4, '.').collect();
        let [header, _, _] = parts[..] else {
            return Err(TokenError::Malformed);
        };
        let raw: Raw = decoded(header)?;
        let algorithm = match raw.alg.as_str() {
            "RS256" => Algorithm::RS256,
            "ES256" => Algorithm::ES256,
            _ => return Err(TokenError::Algorithm(raw.alg.chars().take(16).collect())),
        };
        Ok(Header {
            algorithm,
            kid: raw.kid,
        })
    }
}

fn decoded<T: serde::de::DeserializeOwned>(part: &str) -> Result<T, TokenError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| TokenError::Malformed)
}

/// What a token says.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Claims {
    iss: String,
    sub: String,
    aud: Audiences,
    pub(super) exp: u64,
    #[serde(default)]
    nbf: u64,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<KubernetesClaims>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

impl Audiences {
    fn contain(&self, audience: &str) -> bool {
        match self {
            Audiences::One(one) => one == audience,
            Audiences::Many(many) => many.iter().any(|one| one == audience),
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
struct KubernetesClaims {
    namespace: String,
    serviceaccount: Named,
    pod: Option<Bound>,
}

#[derive(Clone, Debug, Deserialize)]
struct Named {
    name: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Bound {
    name: String,
    uid: String,
}

impl Claims {
    /// Reads the claims of a token without believing them.
    pub(super) fn unverified(token: &str) -> Result<Claims, TokenError> {
        Header::of(token)?;
        decoded(token.split('.').nth(1).unwrap_or_default())
    }

    /// Whom the claims name. They must be believed already.
    pub(super) fn subject(&self, expected: &Expectations, now: u64) -> Result<Subject, TokenError> {
        if now >= self.exp.saturating_add(LEEWAY_SECONDS) {
            return Err(TokenError::Expired);
        }
        if now.saturating_add(LEEWAY_SECONDS) < self.nbf {
            return Err(TokenError::NotYetValid);
        }
        let account = self.kubernetes.as_ref().map(|claims| {
            format!(
                "system:serviceaccount:{}:{}",
                claims.namespace, claims.serviceaccount.name
            )
        });
        if self.aud.contain(&expected.operator_audience) && self.sub == expected.operator_subject {
            // Both of the token's names must be the operator's, or neither counts.
            return match account {
                Some(account) if account == expected.operator_subject => Ok(Subject::Operator),
                _ => Err(TokenError::Account),
            };
        }
        if !self.aud.contain(&expected.worker_audience) {
            return Err(if self.aud.contain(&expected.operator_audience) {
                TokenError::Account
            } else {
                TokenError::Audience
            });
        }
        let claims = self.kubernetes.as_ref().ok_or(TokenError::NoPod)?;
        if claims.namespace != expected.namespace {
            return Err(TokenError::Namespace);
        }
        if claims.serviceaccount.name != expected.worker_account || account.as_deref() != Some(&self.sub) {
            return Err(TokenError::Account);
        }
        let pod = claims.pod.as_ref().ok_or(TokenError::NoPod)?;
        Ok(Subject::Worker {
            pod_name: pod.name.clone(),
            pod_uid: pod.uid.clone(),
        })
    }
}
