//! Which coordinators a worker trusts, what it says of those that it does not, and how it finds the one that leads.

use std::sync::OnceLock;

use prover_agent::{Connection, Departure};
use prover_wire::protocol::NotLeader;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, date_time_ymd,
};
use tonic::transport::{Identity, Server, ServerTlsConfig};

use crate::support::{Bench, Coordinator, Running, within};

const NAME: &str = "coordinator.proving.rs";

/// An authority as the operator makes one for a cluster.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn mk() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    async fn coordinator(&self, name: &str, last_year: i32) -> Coordinator {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(last_year, 1, 1);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let identity = Identity::from_pem(certificate.pem(), key.serialize_pem());
        let server = Server::builder()
            .tls_config(ServerTlsConfig::new().identity(identity))
            .unwrap();
        Coordinator::start_over(server, "https").await
    }
}

/// A bench whose worker trusts an authority, and whose coordinator is as given.
async fn mk(trusted: &Authority, coordinator: Coordinator) -> Bench {
    static PROVIDER: OnceLock<()> = OnceLock::new();
    PROVIDER.get_or_init(|| drop(rustls::crypto::ring::default_provider().install_default()));
    let mut bench = Bench::mk().await;
    let ca_file = bench.path("ca.crt");
    std::fs::write(&ca_file, &trusted.pem).unwrap();
    bench.config.coordinator = coordinator.address.clone();
    bench.config.coordinator_ca_file = Some(ca_file);
    bench.config.coordinator_server_name = Some(NAME.to_owned());
    bench.coordinator = coordinator;
    bench
}

/// Waits until the worker says why there is no session.
async fn refusal(agent: &mut Running, wanted: &str) -> String {
    let refused = |connection: &Connection| matches!(connection, Connection::Failed { category, .. } if *category == wanted);
    let told = within(
        &format!("a refusal for {wanted}"),
        agent.connection.wait_for(refused),
    )
    .await
    .unwrap()
    .clone();
    match told {
        Connection::Failed { message, .. } => message,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_comes_into_the_bundle_is_trusted_at_the_next_connect() {
    let (old, new) = (Authority::mk(), Authority::mk());
    let mut bench = mk(&old, new.coordinator(NAME, 2_100).await).await;
    let mut agent = bench.run();
    let message = refusal(&mut agent, "certificate").await;
    let ca_file = bench.path("ca.crt");
    assert!(message.contains(&ca_file.display().to_string()), "{message}");
    assert!(message.contains("not signed by an authority"), "{message}");
    std::fs::write(&ca_file, format!("{}{}", old.pem, new.pem)).unwrap();
    let session = bench.coordinator.welcomed(1).await;
    // And an open stream does not notice that the old one goes.
    std::fs::write(&ca_file, &new.pem).unwrap();
    session.break_off().await;
    let _session = bench.coordinator.welcomed(1).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_and_a_wrong_name_are_told_with_what_to_check() {
    let authority = Authority::mk();
    let expired = mk(&authority, authority.coordinator(NAME, 2_021).await).await;
    let message = refusal(&mut expired.run(), "certificate").await;
    assert!(message.contains("expired"), "{message}");
    assert!(message.contains("operator runs"), "{message}");
    let foreign = mk(&authority, authority.coordinator("other.example", 2_100).await).await;
    let message = refusal(&mut foreign.run(), "certificate").await;
    assert!(message.contains("--coordinator-server-name"), "{message}");
    assert!(message.contains("other.example"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn authorities_that_cannot_be_read_and_a_port_without_tls_are_told() {
    let authority = Authority::mk();
    let mut bench = mk(&authority, Coordinator::start().await).await;
    bench.config.coordinator = bench.config.coordinator.replace("http://", "https://");
    let mut agent = bench.run();
    let message = refusal(&mut agent, "certificate").await;
    assert!(message.contains("speaks TLS"), "{message}");
    std::fs::write(bench.path("ca.crt"), "no certificate").unwrap();
    let message = refusal(&mut agent, "authorities").await;
    assert!(message.contains("no certificate in PEM form"), "{message}");
    std::fs::remove_file(bench.path("ca.crt")).unwrap();
    let missing = |connection: &Connection| matches!(connection, Connection::Failed { message, .. } if message.contains("No such file"));
    within("the missing file", agent.connection.wait_for(missing))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_goes_to_the_coordinator_that_leads_and_back_when_the_lead_moves() {
    let mut bench = Bench::mk().await;
    let mut other = Coordinator::start().await;
    let authority = |coordinator: &Coordinator| NotLeader {
        address: coordinator.address.trim_start_matches("http://").to_owned(),
    };
    let agent = bench.run();
    let standby = bench.coordinator.session().await;
    standby.send(authority(&other)).await;
    let leader = other.welcomed(1).await;
    // In the middle of a session, too.
    leader.send(authority(&bench.coordinator)).await;
    let _session = bench.coordinator.welcomed(2).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn coordinators_that_send_a_worker_round_are_asked_again_only_after_a_wait() {
    let mut bench = Bench::mk().await;
    let mut agent = bench.run();
    let itself = bench.coordinator.address.trim_start_matches("http://").to_owned();
    // The first one and three hops.
    for _ in 0..4 {
        let session = bench.coordinator.session().await;
        session
            .send(NotLeader {
                address: itself.clone(),
            })
            .await;
    }
    let message = refusal(&mut agent, "not_leader").await;
    assert!(message.contains(&itself), "{message}");
    let _session = bench.coordinator.welcomed(1).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_not_sent_to_another_machine_in_the_clear() {
    let mut bench = Bench::mk().await;
    let mut agent = bench.run();
    let session = bench.coordinator.session().await;
    session
        .send(NotLeader {
            address: "192.0.2.1:7000".to_owned(),
        })
        .await;
    let message = refusal(&mut agent, "address").await;
    assert!(message.contains("in the clear"), "{message}");
    let _session = bench.coordinator.welcomed(1).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_assignment_of_a_lower_epoch_ends_the_stream() {
    let mut bench = Bench::mk().await;
    let mut agent = bench.run();
    let session = bench.coordinator.welcomed(5).await;
    let mut assign = crate::support::mk_assign(1, &[]);
    assign.epoch = 4;
    session.send(assign).await;
    let message = refusal(&mut agent, "stale").await;
    assert!(message.contains("epoch 4"), "{message}");
    let session = bench.coordinator.welcomed(5).await;
    assert!(session.hello.held.is_empty(), "{:?}", session.hello.held);
    assert_eq!(agent.drained().await, Departure::Empty);
}
