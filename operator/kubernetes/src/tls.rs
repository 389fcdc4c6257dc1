//! The coordinator's certificate: read from a folder, and read again when its files change.
//!
//! Owns reading and replacing. Does not own making certificates: the operator does.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use prometheus::{IntCounterVec, Opts, Registry};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;

/// How often the files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);
/// Name of the certificate's file: a chain in PEM, the coordinator's own first.
const CERTIFICATE: &str = "tls.crt";
/// Name of the key's file, in PEM.
const KEY: &str = "tls.key";
/// Largest file that is read.
const FILE_BYTES: u64 = 1 << 20;

/// Why a pair can't be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("{} can't be read: {source}; is the Secret with the certificate mounted there?", path.display())]
    Unreadable {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{} is no {what} in PEM: {problem}", path.display())]
    Malformed {
        /// Its path.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The key is not that of the certificate, or of a kind that is not served.
    #[error("the certificate and the key in {} can't be served together: {source}", directory.display())]
    Pair {
        /// Their folder.
        directory: PathBuf,
        /// What is wrong with them.
        source: rustls::Error,
    },
    /// A metric is registered already.
    #[error("metrics can't be registered: {0}")]
    Metrics(#[from] prometheus::Error),
}

impl TlsError {
    /// Short name for metrics and events.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            TlsError::Unreadable { .. } => "unreadable",
            TlsError::Malformed { .. } => "malformed",
            TlsError::Pair { .. } => "pair",
            TlsError::Metrics(_) => "metrics",
        }
    }

    /// Whether it may pass by itself: the files may be replaced.
    #[must_use]
    pub fn retry(&self) -> bool {
        !matches!(self, TlsError::Metrics(_))
    }
}

/// The files as they were read.
#[derive(Clone, PartialEq, Eq)]
struct Pair {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Pair {
    fn read(directory: &Path) -> Result<Pair, TlsError> {
        Ok(Pair {
            certificate: read(&directory.join(CERTIFICATE))?,
            key: read(&directory.join(KEY))?,
        })
    }

    fn certified(&self, directory: &Path, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
        let malformed = |name: &str, what, problem: String| TlsError::Malformed {
            path: directory.join(name),
            what,
            problem,
        };
        let chain = CertificateDer::pem_slice_iter(&self.certificate)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| malformed(CERTIFICATE, "certificate", error.to_string()))?;
        if chain.is_empty() {
            return Err(malformed(CERTIFICATE, "certificate", "it has none".to_owned()));
        }
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|error| malformed(KEY, "private key", error.to_string()))?;
        CertifiedKey::from_der(chain, key, provider).map_err(|source| TlsError::Pair {
            directory: directory.to_owned(),
            source,
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let unreadable = |source| TlsError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > FILE_BYTES {
        return Err(unreadable(std::io::Error::from(std::io::ErrorKind::FileTooLarge)));
    }
    std::fs::read(path).map_err(unreadable)
}

/// What handshakes are answered with.
#[derive(Debug)]
struct Served(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Served {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// A certificate that follows its files. Sessions outlive a change: it counts for the next handshake.
pub struct Certificate {
    directory: PathBuf,
    provider: Arc<CryptoProvider>,
    served: Arc<Served>,
    /// The last pair that was looked at, served or not.
    seen: Option<Pair>,
    loads: IntCounterVec,
}

impl Certificate {
    /// Reads `tls.crt` and `tls.key` of a folder.
    ///
    /// # Errors
    /// The files are missing or no pair; the coordinator can't start without one.
    pub fn load(directory: impl Into<PathBuf>, registry: &Registry) -> Result<Certificate, TlsError> {
        let directory = directory.into();
        let loads = IntCounterVec::new(
            Opts::new(
                "certificate_loads_total",
                "Times that the coordinator's certificate was read anew, by outcome.",
            )
            .namespace("prover_coordinator"),
            &["outcome"],
        )?;
        registry.register(Box::new(loads.clone()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let pair = Pair::read(&directory)?;
        let certified = pair.certified(&directory, &provider)?;
        loads.with_label_values(&["served"]).inc();
        Ok(Certificate {
            directory,
            provider,
            served: Arc::new(Served(RwLock::new(Arc::new(certified)))),
            seen: Some(pair),
            loads,
        })
    }

    /// TLS 1.3 and HTTP/2 only, always with the latest good pair.
    ///
    /// # Errors
    /// The provider has no TLS 1.3, which would be a fault of ours.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let builder = ServerConfig::builder_with_provider(Arc::clone(&self.provider));
        let builder = builder
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|source| TlsError::Pair {
                directory: self.directory.clone(),
                source,
            })?;
        let served: Arc<Served> = Arc::clone(&self.served);
        let mut config = builder.with_no_client_auth().with_cert_resolver(served);
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    /// Looks at the files every few seconds until it is stopped.
    pub async fn follow(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
            // The files are small and in memory: reading them takes microseconds.
            self.look();
        }
    }

    /// Serves what the files hold now, if they changed and are a pair; else what was served before stays.
    fn look(&mut self) {
        let pair = match Pair::read(&self.directory) {
            Ok(pair) if self.seen.as_ref() == Some(&pair) => return,
            Ok(pair) => pair,
            Err(error) => return self.keep(&error),
        };
        let certified = pair.certified(&self.directory, &self.provider);
        self.seen = Some(pair);
        match certified {
            Ok(certified) => {
                *self.served.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certified);
                self.loads.with_label_values(&["served"]).inc();
                tracing::info!(directory = %self.directory.display(), "a new certificate is served");
            }
            Err(error) => self.keep(&error),
        }
    }

    fn keep(&self, error: &TlsError) {
        self.loads.with_label_values(&[error.category()]).inc();
        tracing::error!(%error, "the new certificate can't be served: the one before stays");
    }
}
