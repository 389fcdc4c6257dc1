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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rcgen::{CertifiedKey as Generated, generate_simple_self_signed};
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConnection};

    use super::*;

    const NAME: &str = prover_crds::names::COORDINATOR_SERVER_NAME;

    /// A folder as the kubelet projects a Secret: files that are links into a folder that is swapped as a whole.
    struct Secret {
        folder: tempfile::TempDir,
        version: u32,
    }

    impl Secret {
        fn new() -> Secret {
            let folder = tempfile::tempdir().unwrap();
            for name in [CERTIFICATE, KEY] {
                symlink(format!("..data/{name}"), folder.path().join(name)).unwrap();
            }
            Secret { folder, version: 0 }
        }

        fn project(&mut self, certificate: &str, key: &str) {
            self.version += 1;
            let version = format!("..version-{}", self.version);
            let new = self.folder.path().join(&version);
            std::fs::create_dir(&new).unwrap();
            std::fs::write(new.join(CERTIFICATE), certificate).unwrap();
            std::fs::write(new.join(KEY), key).unwrap();
            let swap = self.folder.path().join("..data_tmp");
            symlink(&version, &swap).unwrap();
            std::fs::rename(swap, self.folder.path().join("..data")).unwrap();
        }
    }

    fn mk_pair() -> Generated<rcgen::KeyPair> {
        generate_simple_self_signed([NAME.to_owned()]).unwrap()
    }

    fn client(
        trusted: &Generated<rcgen::KeyPair>,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> ClientConnection {
        let mut roots = RootCertStore::empty();
        roots.add(trusted.cert.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        ClientConnection::new(Arc::new(config), ServerName::try_from(NAME).unwrap()).unwrap()
    }

    /// Passes bytes to and fro until both are done or one refuses.
    fn exchange(client: &mut ClientConnection, server: &mut ServerConnection) -> Result<(), rustls::Error> {
        while client.is_handshaking() || server.is_handshaking() {
            let mut sent = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut sent).unwrap();
            }
            server.read_tls(&mut sent.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut answered = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut answered).unwrap();
            }
            client.read_tls(&mut answered.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok(())
    }

    fn trusts(config: &Arc<ServerConfig>, trusted: &Generated<rcgen::KeyPair>) -> bool {
        let mut server = ServerConnection::new(Arc::clone(config)).unwrap();
        exchange(&mut client(trusted, &[&rustls::version::TLS13]), &mut server).is_ok()
    }

    #[test]
    fn a_new_pair_is_served_to_new_handshakes_and_open_sessions_go_on() {
        let (first, second) = (mk_pair(), mk_pair());
        let mut secret = Secret::new();
        secret.project(&first.cert.pem(), &first.signing_key.serialize_pem());
        let mut certificate = Certificate::load(secret.folder.path(), &Registry::new()).unwrap();
        let config = certificate.server_config().unwrap();
        let mut open_server = ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut open_client = client(&first, &[&rustls::version::TLS13]);
        exchange(&mut open_client, &mut open_server).unwrap();
        assert_eq!(open_server.alpn_protocol(), Some(&b"h2"[..]));

        secret.project(&second.cert.pem(), &second.signing_key.serialize_pem());
        assert!(!trusts(&config, &second), "nobody has looked yet");
        certificate.look();
        assert!(trusts(&config, &second) && !trusts(&config, &first));

        std::io::Write::write_all(&mut open_client.writer(), b"still here").unwrap();
        let mut sent = Vec::new();
        open_client.write_tls(&mut sent).unwrap();
        open_server.read_tls(&mut sent.as_slice()).unwrap();
        open_server.process_new_packets().unwrap();
        let mut heard = [0; 10];
        std::io::Read::read_exact(&mut open_server.reader(), &mut heard).unwrap();
        assert_eq!(&heard, b"still here");
    }

    #[test]
    fn a_pair_that_is_none_leaves_the_one_before_and_is_counted() {
        let (first, second) = (mk_pair(), mk_pair());
        let mut secret = Secret::new();
        secret.project(&first.cert.pem(), &first.signing_key.serialize_pem());
        let registry = Registry::new();
        let mut certificate = Certificate::load(secret.folder.path(), &registry).unwrap();
        let config = certificate.server_config().unwrap();
        let key = second.signing_key.serialize_pem();
        for (broken_certificate, broken_key, outcome) in [
            (second.cert.pem(), first.signing_key.serialize_pem(), "pair"),
            ("nonsense".to_owned(), key.clone(), "malformed"),
            (second.cert.pem(), "nonsense".to_owned(), "malformed"),
            (String::new(), String::new(), "malformed"),
        ] {
            let before = certificate.loads.with_label_values(&[outcome]).get();
            secret.project(&broken_certificate, &broken_key);
            certificate.look();
            certificate.look();
            assert!(trusts(&config, &first));
            assert_eq!(
                certificate.loads.with_label_values(&[outcome]).get(),
                before + 1,
                "told once"
            );
        }
        std::fs::remove_file(secret.folder.path().join("..data")).unwrap();
        certificate.look();
        assert_eq!(certificate.loads.with_label_values(&["unreadable"]).get(), 1);
        secret.project(&second.cert.pem(), &key);
        certificate.look();
        assert!(trusts(&config, &second));
    }

    #[test]
    fn older_versions_than_tls_1_3_are_refused() {
        let pair = mk_pair();
        let mut secret = Secret::new();
        secret.project(&pair.cert.pem(), &pair.signing_key.serialize_pem());
        let certificate = Certificate::load(secret.folder.path(), &Registry::new()).unwrap();
        let mut server = ServerConnection::new(certificate.server_config().unwrap()).unwrap();
        let refused = exchange(&mut client(&pair, &[&rustls::version::TLS12]), &mut server);
        assert!(refused.is_err());
    }

    #[test]
    fn a_folder_without_files_is_told_with_what_to_look_at() {
        let folder = tempfile::tempdir().unwrap();
        let error = Certificate::load(folder.path(), &Registry::new()).err().unwrap();
        assert_eq!(error.category(), "unreadable");
        assert!(error.to_string().contains("tls.crt") && error.to_string().contains("Secret"));
    }
}
