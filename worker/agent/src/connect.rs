//! Connecting to a coordinator: where it is, whether the way there is safe for a token, and what is wrong when its
//! certificate is not accepted.
//!
//! The name is resolved and the file with the authorities is read at each connect, so that neither a moved
//! coordinator nor a renewed authority needs a restart.

use std::error::Error;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::time::timeout;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Uri};

use crate::limits::{ADDRESSES, CA_BUNDLE_BYTES, CONNECT_WITHIN};

/// How a coordinator's address is written.
const FORM: &str = "https://HOST:PORT, or http://HOST:PORT on this machine";

/// Why an address can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddressError {
    #[error("{address:?} is no address: write {FORM}")]
    Malformed { address: String },
    #[error(
        "{address} is another machine: over http the token would travel in the clear. Write https://HOST:PORT with \
         --coordinator-ca-file, or --insecure-coordinator where the network is trusted"
    )]
    InTheClear { address: String },
    #[error(
        "https needs --coordinator-ca-file: the file with the authorities that sign the coordinator's certificate"
    )]
    NoAuthorities,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error(
        "could not read the authorities in {}: {source}. Give --coordinator-ca-file the bundle of this cluster",
        path.display()
    )]
    ReadAuthorities { path: PathBuf, source: std::io::Error },
    #[error(
        "{} holds no certificate in PEM form ({problem}). Give --coordinator-ca-file the bundle of this cluster",
        path.display()
    )]
    MalformedAuthorities { path: PathBuf, problem: String },
    #[error("the coordinator at {address} can't be trusted: {problem}")]
    Certificate { address: String, problem: String },
    #[error("the coordinator at {address} can't be reached: {problem}")]
    Reach { address: String, problem: String },
}

impl ConnectError {
    /// Short name for metrics and logs.
    pub(crate) fn category(&self) -> &'static str {
        match self {
            Self::Address(_) => "address",
            Self::ReadAuthorities { .. } | Self::MalformedAuthorities { .. } => "authorities",
            Self::Certificate { .. } => "certificate",
            Self::Reach { .. } => "connect",
        }
    }
}

/// Opens connections to the coordinators of one cluster.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    /// None: over http.
    tls: Option<Tls>,
    insecure: bool,
    /// Host and port of the first coordinator that is asked.
    authority: String,
}

#[derive(Clone, Debug)]
struct Tls {
    ca_file: PathBuf,
    /// Name that the certificate must be made out to; none: that of the address.
    server_name: Option<String>,
}

impl Connector {
    /// Checks an address; touches nothing.
    ///
    /// # Errors
    /// It can't be used, or a token would not be safe on the way.
    pub(crate) fn new(
        address: &str,
        ca_file: Option<PathBuf>,
        server_name: Option<String>,
        insecure: bool,
    ) -> Result<Self, AddressError> {
        let malformed = || AddressError::Malformed {
            address: address.to_owned(),
        };
        let uri: Uri = address.parse().map_err(|_| malformed())?;
        let authority = uri.authority().ok_or_else(malformed)?.as_str().to_owned();
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(malformed());
        }
        let tls = match uri.scheme_str() {
            Some("http") => None,
            Some("https") => Some(Tls {
                ca_file: ca_file.ok_or(AddressError::NoAuthorities)?,
                server_name,
            }),
            _ => return Err(malformed()),
        };
        let connector = Self {
            tls,
            insecure,
            authority,
        };
        connector.address(&connector.authority)?;
        Ok(connector)
    }

    /// Host and port of the coordinator that is asked first.
    pub(crate) fn first(&self) -> &str {
        &self.authority
    }

    /// The address of a coordinator, for messages.
    pub(crate) fn shown(&self, authority: &str) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{authority}")
    }

    /// The whole address of a coordinator of this cluster; the way there is as safe as that to the first one.
    fn address(&self, authority: &str) -> Result<Uri, AddressError> {
        let address = self.shown(authority);
        let uri: Uri = address.parse().map_err(|_| AddressError::Malformed {
            address: address.clone(),
        })?;
        let (Some(host), Some(_)) = (uri.host(), uri.port_u16()) else {
            return Err(AddressError::Malformed { address });
        };
        let whole = uri.authority().is_some_and(|parsed| parsed.as_str() == authority);
        if !whole || authority.contains('@') {
            return Err(AddressError::Malformed { address });
        }
        if self.tls.is_none() && !self.insecure && !is_this_machine(host) {
            return Err(AddressError::InTheClear { address });
        }
        Ok(uri)
    }

    /// Where the coordinators are that the first address stands for, each by its own address: only one of them leads,
    /// and a connection by name would always go to the first one that accepts it. None where the name stands for one
    /// or can't be resolved: then connecting by name says what is wrong.
    pub(crate) async fn places(&self) -> Vec<String> {
        let Ok(Ok(found)) = timeout(CONNECT_WITHIN, tokio::net::lookup_host(&self.authority)).await else {
            return Vec::new();
        };
        let mut places: Vec<String> = Vec::new();
        for place in found.map(|address| address.to_string()) {
            if !places.contains(&place) && places.len() < ADDRESSES {
                places.push(place);
            }
        }
        if places.len() > 1 { places } else { Vec::new() }
    }

    /// The name in a certificate of a coordinator that is reached by an address alone: that of the first one.
    fn name_for(&self, uri: &Uri) -> Option<String> {
        let bare = |uri: &Uri| uri.host().map(|host| host.trim_matches(['[', ']']).to_owned());
        let literal = bare(uri)?.parse::<IpAddr>().is_ok();
        let first = self
            .address(&self.authority)
            .ok()
            .and_then(|first| bare(&first))?;
        (literal && first.parse::<IpAddr>().is_err()).then_some(first)
    }

    /// Connects to a coordinator by host and port; the handshake is within the limit, too.
    pub(crate) async fn connect(&self, authority: &str, within: Duration) -> Result<Channel, ConnectError> {
        let uri = self.address(authority)?;
        let address = self.shown(authority);
        let unreachable = |problem: String| ConnectError::Reach {
            address: address.clone(),
            problem,
        };
        let by_address = self.name_for(&uri);
        let mut endpoint = Endpoint::from(uri).connect_timeout(within).tcp_nodelay(true);
        if let Some(tls) = &self.tls {
            let mut config = ClientTlsConfig::new().ca_certificate(tls.authorities().await?);
            if let Some(name) = tls.server_name.as_ref().or(by_address.as_ref()) {
                config = config.domain_name(name);
            }
            endpoint = endpoint
                .tls_config(config)
                .map_err(|error| unreachable(causes(&error)))?;
        }
        // Around the handshake, too.
        match timeout(within, endpoint.connect()).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => Err(match (&self.tls, tls_error(&error)) {
                (Some(tls), Some(problem)) => ConnectError::Certificate {
                    address,
                    problem: tls.advice(problem),
                },
                _ => unreachable(causes(&error)),
            }),
            Err(_) => Err(unreachable(format!("no answer within {} s", within.as_secs()))),
        }
    }
}

impl Tls {
    async fn authorities(&self) -> Result<Certificate, ConnectError> {
        let path = &self.ca_file;
        let read = crate::files::read_bounded(path, CA_BUNDLE_BYTES);
        let pem = read.await.map_err(|source| ConnectError::ReadAuthorities {
            path: path.clone(),
            source,
        })?;
        let malformed = |problem: String| ConnectError::MalformedAuthorities {
            path: path.clone(),
            problem,
        };
        let mut count = 0_usize;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            certificate.map_err(|error| malformed(error.to_string()))?;
            count += 1;
        }
        if count == 0 {
            return Err(malformed("it is empty or something else".to_owned()));
        }
        Ok(Certificate::from_pem(pem))
    }

    /// What is wrong with the coordinator's certificate, and what to check.
    fn advice(&self, error: &rustls::Error) -> String {
        use rustls::CertificateError as Wrong;
        let rustls::Error::InvalidCertificate(wrong) = error else {
            return format!("{error}. Check that the port is the coordinator's and speaks TLS");
        };
        match wrong {
            Wrong::UnknownIssuer | Wrong::BadSignature => format!(
                "its certificate is not signed by an authority in {}. Check that the file is the bundle of this \
                 cluster and that the address is that of its coordinator",
                self.ca_file.display()
            ),
            Wrong::Expired | Wrong::ExpiredContext { .. } => format!(
                "{wrong}. Check that the operator runs, which renews certificates, and this machine's clock"
            ),
            Wrong::NotValidYet | Wrong::NotValidYetContext { .. } => {
                format!("{wrong}. Check the clocks of both machines")
            }
            Wrong::NotValidForName | Wrong::NotValidForNameContext { .. } => {
                format!("{wrong}. Check --coordinator-server-name and the address")
            }
            wrong => format!(
                "{wrong}. Check the coordinator's certificate and {}",
                self.ca_file.display()
            ),
        }
    }
}

/// Whether a host is this machine for sure: a loopback address, or the name that stands for one.
fn is_this_machine(host: &str) -> bool {
    let literal = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || literal.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The error of the handshake, which lies below those of transport and I/O.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // What an I/O error wraps is not its source.
        if let Some(inner) = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref)
            && let Some(found) = tls_error(inner)
        {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// An error with all that caused it, since transport errors say nothing by themselves.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk(address: &str, insecure: bool) -> Result<Connector, AddressError> {
        Connector::new(address, Some("/ca.crt".into()), None, insecure)
    }

    #[test]
    fn over_http_only_this_machine_is_spoken_to() {
        for address in [
            "http://127.0.0.1:7000",
            "http://[::1]:7000",
            "http://localhost:7000",
        ] {
            mk(address, false).unwrap();
        }
        for address in [
            "http://10.0.0.1:7000",
            "http://coordinator:7000",
            "http://localhost.example:7000",
        ] {
            let error = mk(address, false).unwrap_err();
            assert!(matches!(error, AddressError::InTheClear { .. }), "{error}");
            assert!(error.to_string().contains("--coordinator-ca-file"), "{error}");
            mk(address, true).unwrap();
        }
    }

    #[test]
    fn a_coordinator_reached_by_its_address_has_the_certificate_of_the_name() {
        let named = mk("https://coordinator:7000", false).unwrap();
        for (authority, name) in [
            ("10.0.0.1:7000", Some("coordinator")),
            ("[fd00::1]:7000", Some("coordinator")),
            ("other:7000", None),
        ] {
            let uri = named.address(authority).unwrap();
            assert_eq!(named.name_for(&uri).as_deref(), name, "{authority}");
        }
        let literal = mk("https://10.0.0.1:7000", false).unwrap();
        let uri = literal.address("10.0.0.2:7000").unwrap();
        assert_eq!(literal.name_for(&uri), None, "it has no name to check");
    }

    #[tokio::test]
    async fn a_name_of_one_coordinator_is_connected_to_by_name() {
        let one = mk("http://127.0.0.1:7000", false).unwrap();
        assert_eq!(one.places().await, Vec::<String>::new());
        let unknown = mk("https://no-such-name.invalid:7000", false).unwrap();
        assert_eq!(unknown.places().await, Vec::<String>::new());
    }

    #[test]
    fn another_coordinator_is_reached_as_safely_as_the_first() {
        let local = mk("http://127.0.0.1:7000", false).unwrap();
        assert!(local.address("127.0.0.1:7001").is_ok());
        assert!(matches!(
            local.address("10.0.0.1:7000"),
            Err(AddressError::InTheClear { .. })
        ));
        let safe = mk("https://coordinator:7000", false).unwrap();
        assert_eq!(safe.address("10.0.0.1:7000").unwrap().scheme_str(), Some("https"));
        for authority in [
            "coordinator:7000/path",
            "user@coordinator:7000",
            "http://coordinator:7000",
            "coordinator",
        ] {
            assert!(safe.address(authority).is_err(), "{authority}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_form() {
        for address in [
            "",
            "coordinator:7000",
            "ftp://coordinator:7000",
            "https://coordinator",
            "https://coordinator:7000/path",
            "https://user@coordinator:7000",
        ] {
            let error = mk(address, true).unwrap_err();
            assert!(
                error.to_string().contains("https://HOST:PORT"),
                "{address}: {error}"
            );
        }
        let error = Connector::new("https://coordinator:7000", None, None, false).unwrap_err();
        assert!(error.to_string().contains("--coordinator-ca-file"), "{error}");
    }
}
