//! A real etcd and kube-apiserver in a temporary folder, reachable with client certificates only.
//!
//! They end with the last test that uses them, and also when this process is killed.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use tempfile::TempDir;

/// Longest wait until both answer; a machine that builds something else at the same time takes its time.
const START_LIMIT: Duration = Duration::from_secs(120);
/// Between two questions whether they answer.
const START_POLL: Duration = Duration::from_millis(100);
/// Between two looks whether they still run.
const OWNER_POLL: Duration = Duration::from_millis(100);
/// Lines of a log that a failure shows.
const SHOWN_LOG_LINES: usize = 30;
/// Names the version that the build script builds.
const GO_MODULE: &str = include_str!("../../../e2e/tools/kubernetes/go.mod");

/// The servers. All tests that run at the same time share them.
pub(crate) struct Kubernetes {
    folder: TempDir,
    stop: Option<mpsc::Sender<()>>,
    owner: Option<JoinHandle<()>>,
}

impl Kubernetes {
    /// Those that run already, else new ones.
    pub(crate) fn shared() -> Arc<Kubernetes> {
        static RUNNING: Mutex<Weak<Kubernetes>> = Mutex::new(Weak::new());
        // A test that failed to start them must not fail the others with a poisoned lock.
        let mut running = RUNNING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(kubernetes) = running.upgrade() {
            return kubernetes;
        }
        let kubernetes = Arc::new(Kubernetes::start());
        *running = Arc::downgrade(&kubernetes);
        kubernetes
    }

    /// A client that may do everything.
    pub(crate) async fn client(&self) -> Client {
        let kubeconfig =
            Kubeconfig::read_from(self.folder.path().join("kubeconfig")).expect("the kubeconfig is ours");
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        Client::try_from(config.expect("the kubeconfig is complete"))
            .expect("the client takes our certificates")
    }

    /// A kubeconfig with the rights of an administrator, for programs of their own.
    #[allow(dead_code, reason = "only some tests start programs of their own")]
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    fn start() -> Kubernetes {
        let kube_apiserver = program("kube-apiserver");
        let etcd = PathBuf::from("etcd");
        let folder = tempfile::tempdir().expect("a temporary folder");
        write_certificates(folder.path());
        let [etcd_port, etcd_peer_port, api_port] = free_ports();
        write_kubeconfig(folder.path(), api_port);

        let (stop, stopped) = mpsc::channel();
        let ended = Arc::new(AtomicBool::new(false));
        let logs = [
            folder.path().join("etcd.log"),
            folder.path().join("kube-apiserver.log"),
        ];
        let owner = {
            let (path, ended) = (folder.path().to_owned(), Arc::clone(&ended));
            // The kernel kills the servers when the thread that started them ends, so one thread does nothing else.
            thread::spawn(move || {
                let mut servers = [
                    Server::start(&path, &etcd, &etcd_arguments(&path, etcd_port, etcd_peer_port)),
                    Server::start(
                        &path,
                        &kube_apiserver,
                        &api_server_arguments(&path, etcd_port, api_port),
                    ),
                ];
                // Ends when told, and when the sender is gone.
                while matches!(
                    stopped.recv_timeout(OWNER_POLL),
                    Err(mpsc::RecvTimeoutError::Timeout)
                ) {
                    let over = servers
                        .iter_mut()
                        .any(|server| !matches!(server.child.try_wait(), Ok(None)));
                    ended.store(over, Ordering::Relaxed);
                }
            })
        };
        let kubernetes = Kubernetes {
            folder,
            stop: Some(stop),
            owner: Some(owner),
        };
        kubernetes.wait_until_ready(&logs, &ended);
        kubernetes
    }

    fn wait_until_ready(&self, logs: &[PathBuf], ended: &AtomicBool) {
        // A test is already inside a runtime of its own, so this one lives and ends in a thread.
        let wait = || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(self.answers_in_time(ended))
        };
        let ready = thread::scope(|scope| scope.spawn(wait).join());
        if !matches!(ready, Ok(true)) {
            let shown: Vec<String> = logs.iter().map(|log| tail(log)).collect();
            panic!(
                "etcd and kube-apiserver did not become ready:\n{}",
                shown.join("\n")
            );
        }
    }

    async fn answers_in_time(&self, ended: &AtomicBool) -> bool {
        let client = self.client().await;
        let begin = Instant::now();
        while begin.elapsed() < START_LIMIT && !ended.load(Ordering::Relaxed) {
            let request = http::Request::get("/api/v1/namespaces/default")
                .body(Vec::new())
                .expect("a request");
            if client.request_text(request).await.is_ok() {
                return true;
            }
            tokio::time::sleep(START_POLL).await;
        }
        false
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(owner) = self.owner.take() {
            let _ = owner.join();
        }
    }
}

struct Server {
    child: Child,
}

impl Server {
    fn start(folder: &Path, program: &Path, arguments: &[String]) -> Server {
        let name = program
            .file_name()
            .expect("a program has a name")
            .to_string_lossy()
            .into_owned();
        let log = folder.join(format!("{name}.log"));
        let output = File::create(&log).expect("a log file");
        let child = dying_with_us(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a log file"))
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| {
                panic!(
                    "could not start {}: {error}. Run `e2e/tools/build-kubernetes.sh kube-apiserver`",
                    program.display()
                )
            });
        Server { child }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Through setpriv of util-linux, where it is: then the kernel kills the program with the thread that started it.
fn dying_with_us(program: &Path) -> Command {
    let setpriv = Path::new("/usr/bin/setpriv");
    if !setpriv.exists() {
        return Command::new(program);
    }
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// From `PROVER_TEST_KUBERNETES`, else from the cache.
fn program(name: &str) -> PathBuf {
    let folder = std::env::var_os("PROVER_TEST_KUBERNETES").map_or_else(
        || {
            let cache = std::env::var_os("PROVER_OPERATOR_CACHE").map(PathBuf::from);
            let home =
                || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/prover-operator");
            cache
                .unwrap_or_else(home)
                .join(format!("kubernetes-v{}", version()))
        },
        PathBuf::from,
    );
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "{} is missing: run `e2e/tools/build-kubernetes.sh {name}` (make {name})",
        path.display()
    );
    path
}

fn version() -> &'static str {
    let line = GO_MODULE
        .lines()
        .find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes v"));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    number.expect("go.mod requires an exact version of k8s.io/kubernetes")
}

/// Ports that were free a moment ago.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("a port").port())
}

fn etcd_arguments(folder: &Path, port: u16, peer_port: u16) -> Vec<String> {
    let file = |name: &str| folder.join(name).display().to_string();
    vec![
        format!("--data-dir={}", file("etcd")),
        format!("--listen-client-urls=https://127.0.0.1:{port}"),
        format!("--advertise-client-urls=https://127.0.0.1:{port}"),
        format!("--listen-peer-urls=http://127.0.0.1:{peer_port}"),
        format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer_port}"),
        format!("--initial-cluster=default=http://127.0.0.1:{peer_port}"),
        "--client-cert-auth=true".to_owned(),
        format!("--trusted-ca-file={}", file("ca.crt")),
        format!("--cert-file={}", file("server.crt")),
        format!("--key-file={}", file("server.key")),
    ]
}

fn api_server_arguments(folder: &Path, etcd_port: u16, port: u16) -> Vec<String> {
    let file = |name: &str| folder.join(name).display().to_string();
    vec![
        format!("--etcd-servers=https://127.0.0.1:{etcd_port}"),
        format!("--etcd-cafile={}", file("ca.crt")),
        format!("--etcd-certfile={}", file("client.crt")),
        format!("--etcd-keyfile={}", file("client.key")),
        "--bind-address=127.0.0.1".to_owned(),
        "--advertise-address=127.0.0.1".to_owned(),
        format!("--secure-port={port}"),
        format!("--tls-cert-file={}", file("server.crt")),
        format!("--tls-private-key-file={}", file("server.key")),
        format!("--client-ca-file={}", file("ca.crt")),
        "--authorization-mode=RBAC".to_owned(),
        "--anonymous-auth=false".to_owned(),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-key-file={}", file("server.pub")),
        format!("--service-account-signing-key-file={}", file("server.key")),
        "--endpoint-reconciler-type=none".to_owned(),
        "--profiling=false".to_owned(),
    ]
}

/// An authority, a certificate for both servers and one for an administrator.
fn write_certificates(folder: &Path) {
    let mut authority = CertificateParams::default();
    authority
        .distinguished_name
        .push(DnType::CommonName, "authority of a test");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let authority =
        CertifiedIssuer::self_signed(authority, KeyPair::generate().expect("a key")).expect("an authority");
    fs::write(folder.join("ca.crt"), authority.pem()).expect("a file");

    let addresses = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    for (name, organization, addresses) in [
        ("server", "servers", addresses),
        ("client", "system:masters", Vec::new()),
    ] {
        let mut params = CertificateParams::new(addresses).expect("good addresses");
        params.distinguished_name.push(DnType::CommonName, name);
        params
            .distinguished_name
            .push(DnType::OrganizationName, organization);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &authority).expect("a certificate");
        fs::write(folder.join(format!("{name}.crt")), certificate.pem()).expect("a file");
        fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).expect("a file");
        fs::write(folder.join(format!("{name}.pub")), key.public_key_pem()).expect("a file");
    }
}

fn write_kubeconfig(folder: &Path, port: u16) {
    let file = |name: &str| folder.join(name).display().to_string();
    let kubeconfig = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test", "namespace": "default" } }],
        "clusters": [{ "name": "test", "cluster": {
            "server": format!("https://127.0.0.1:{port}"), "certificate-authority": file("ca.crt"),
        } }],
        "users": [{ "name": "test", "user": {
            "client-certificate": file("client.crt"), "client-key": file("client.key"),
        } }],
    });
    fs::write(folder.join("kubeconfig"), kubeconfig.to_string()).expect("a file");
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(SHOWN_LOG_LINES)..];
    format!("--- {}\n{}", log.display(), shown.join("\n"))
}
