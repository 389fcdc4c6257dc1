//! Connections: encrypted where that is asked for, and ended where nobody signs in.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use prover_wire::protocol::worker_plane_client::WorkerPlaneClient;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use support::{Fixture, SOON, TOKEN, mk_description, mk_fixture, mk_fixture_with, mk_hello};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::metadata::MetadataValue;
use tonic::transport::Endpoint;
use tonic::{Code, Request};

const NAME: &str = "coordinator.proving.rs";

struct Certificate {
    der: rustls::pki_types::CertificateDer<'static>,
    config: Arc<ServerConfig>,
}

fn mk_certificate() -> Certificate {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Certificate {
        der: made.cert.der().clone(),
        config: Arc::new(config),
    }
}

fn connector(trusted: &Certificate) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.der.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsConnector::from(Arc::new(config))
}

async fn mk_encrypted(certificate: &Certificate) -> Fixture {
    let config = Arc::clone(&certificate.config);
    mk_fixture_with(|changed| changed.tls = Some(config)).await
}

async fn connect(address: SocketAddr, connector: TlsConnector) -> Result<tonic::transport::Channel, String> {
    let connect = tower::service_fn(move |_: http::Uri| {
        let connector = connector.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            let name = ServerName::try_from(NAME).unwrap();
            connector.connect(name, stream).await.map(TokioIo::new)
        }
    });
    let endpoint = Endpoint::from_static("http://coordinator.proving.rs");
    let channel = endpoint.connect_with_connector(connect).await;
    channel.map_err(|error| error.to_string())
}

/// Waits until the coordinator ends a connection.
async fn ended(stream: &mut TcpStream) {
    let mut heard = Vec::new();
    let end = tokio::time::timeout(SOON, stream.read_to_end(&mut heard)).await;
    // A reset is an end as well.
    let _ = end.expect("the connection is ended");
}

#[tokio::test]
async fn a_worker_connects_over_tls_to_the_certificate_that_it_trusts_only() {
    let certificate = mk_certificate();
    let fixture = mk_encrypted(&certificate).await;
    let address = fixture.coordinator.address();
    assert!(connect(address, connector(&mk_certificate())).await.is_err());

    let channel = connect(address, connector(&certificate)).await.unwrap();
    let mut client = WorkerPlaneClient::new(channel);
    let hello = mk_hello("worker", &mk_description("emulated", "Emulated", true));
    let messages =
        futures::StreamExt::chain(futures::stream::iter([hello.into()]), futures::stream::pending());
    let mut request = Request::new(messages);
    let value: MetadataValue<_> = format!("Bearer {TOKEN}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    let mut answers = client.session(request).await.unwrap().into_inner();
    let welcome = tokio::time::timeout(SOON, answers.message()).await.unwrap();
    assert!(welcome.unwrap().is_some());
    fixture.until_connected(1).await;
}

#[tokio::test]
async fn what_is_not_encrypted_gets_nothing_from_an_encrypted_port() {
    let fixture = mk_encrypted(&mk_certificate()).await;
    let mut stream = TcpStream::connect(fixture.coordinator.address()).await.unwrap();
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    ended(&mut stream).await;
    assert!(fixture.metric("prover_coordinator_sessions_refused_total") >= 1.0);
}

#[tokio::test]
async fn a_connection_on_which_nobody_signs_in_ends() {
    let certificate = mk_certificate();
    let impatient = |tls: Option<Arc<ServerConfig>>| {
        mk_fixture_with(move |config| {
            config.tls = tls;
            config.sign_in_timeout = Duration::from_millis(100);
        })
    };
    let plain = impatient(None).await;
    let encrypted = impatient(Some(certificate.config)).await;
    let silent = TcpStream::connect(plain.coordinator.address()).await.unwrap();
    let mut preface = TcpStream::connect(plain.coordinator.address()).await.unwrap();
    // Speaks HTTP/2 and keeps quiet then, as one who wants to hold the connection.
    preface
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
        .await
        .unwrap();
    let no_handshake = TcpStream::connect(encrypted.coordinator.address()).await.unwrap();
    for mut stream in [silent, preface, no_handshake] {
        ended(&mut stream).await;
    }
}

#[tokio::test]
async fn a_token_that_is_too_long_is_refused_before_it_is_looked_at() {
    let fixture = mk_fixture().await;
    let refused = support::open_stream(&fixture, Some(&"x".repeat(1 << 20))).await;
    assert!(refused.is_err());
    let refused = support::open_stream(&fixture, Some("wrong")).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
}
