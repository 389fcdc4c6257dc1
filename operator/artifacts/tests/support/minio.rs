//! A real MinIO for the tests of one process: a random port, random credentials, a temporary folder.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use std::{env, thread};

use aws_credential_types::Credentials;
use aws_sdk_s3::config::{BehaviorVersion, Region};
use prover_artifacts::StaticCredentials;

/// How long MinIO may take to start on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) struct Minio {
    pub(crate) address: SocketAddr,
    pub(crate) credentials: StaticCredentials,
    // Its input is held open: the shell around MinIO ends it when this process is gone, however it went.
    _shell: Child,
}

/// The one MinIO of this process.
pub(crate) fn shared() -> &'static Minio {
    static MINIO: OnceLock<Minio> = OnceLock::new();
    MINIO.get_or_init(|| Minio::start(None))
}

/// Where `e2e/tools/build-minio.sh` puts the binary.
fn binary() -> PathBuf {
    let tools = concat!(env!("CARGO_MANIFEST_DIR"), "/../../e2e/tools");
    let found = env::var_os("PROVER_TEST_MINIO")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            let module = std::fs::read_to_string(format!("{tools}/minio/go.mod")).unwrap();
            let version = module
                .split("github.com/minio/minio ")
                .nth(1)
                .unwrap()
                .split_whitespace()
                .next()
                .unwrap();
            let cache = env::var_os("PROVER_OPERATOR_CACHE").map_or_else(
                || {
                    PathBuf::from(env::var_os("HOME").expect("HOME is not set"))
                        .join(".cache/prover-operator")
                },
                PathBuf::from,
            );
            cache.join(format!("minio-{version}")).join("minio")
        });
    assert!(
        found.is_file(),
        "MinIO is not at {}. Build it with e2e/tools/build-minio.sh (some minutes, once), or set PROVER_TEST_MINIO",
        found.display()
    );
    found
}

impl Minio {
    /// Starts MinIO over this folder, or over a temporary one that goes with it.
    pub(crate) fn start(folder: Option<&Path>) -> Self {
        let minio = Self::spawn(folder, None);
        minio.await_answer("HTTP/1.1 200");
        minio
    }

    /// Starts MinIO over this folder, with `public.crt` and `private.key` of the other one. It may still be starting.
    pub(crate) fn start_encrypted(folder: &Path, certificates: &Path) -> Self {
        let minio = Self::spawn(Some(folder), Some(certificates));
        // The answer to what is not encrypted.
        minio.await_answer("HTTP/1.0 400");
        minio
    }

    fn spawn(folder: Option<&Path>, certificates: Option<&Path>) -> Self {
        let credentials = StaticCredentials {
            access_key_id: uuid::Uuid::new_v4().simple().to_string(),
            secret_access_key: uuid::Uuid::new_v4().simple().to_string(),
            session_token: None,
        };
        let temporary = tempfile::tempdir().unwrap().keep();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let script = "\"$0\" server --quiet --certs-dir \"$4\" --address \"$1\" \"$2\" & \
                      read end; kill -9 $!; wait; rm -rf \"$3\"";
        let shell = Command::new("sh")
            .args(["-c", script])
            .arg(binary())
            .arg(address.to_string())
            .arg(folder.unwrap_or(&temporary))
            .arg(&temporary)
            .arg(certificates.unwrap_or(&temporary.join("no-certificates")))
            .env("MINIO_ROOT_USER", &credentials.access_key_id)
            .env("MINIO_ROOT_PASSWORD", &credentials.secret_access_key)
            .env("MINIO_BROWSER", "off")
            .env("HOME", &temporary)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            address,
            credentials,
            _shell: shell,
        }
    }

    fn await_answer(&self, wanted: &str) {
        use std::io::{Read, Write};
        let start = Instant::now();
        loop {
            let ready = TcpStream::connect(self.address).and_then(|mut stream| {
                stream.write_all(
                    b"GET /minio/health/ready HTTP/1.1\r\nHost: minio\r\nConnection: close\r\n\r\n",
                )?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer)?;
                Ok(answer.starts_with(wanted))
            });
            if matches!(ready, Ok(true)) {
                return;
            }
            assert!(
                start.elapsed() < START_TIMEOUT,
                "MinIO is not ready after {START_TIMEOUT:?}: {ready:?}"
            );
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// The SDK itself, for what a store does not do.
    pub(crate) fn client(&self) -> aws_sdk_s3::Client {
        let credentials = Credentials::new(
            &self.credentials.access_key_id,
            &self.credentials.secret_access_key,
            None,
            None,
            "test",
        );
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(format!("http://{}", self.address))
            .force_path_style(true)
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .credentials_provider(credentials);
        aws_sdk_s3::Client::from_conf(config.build())
    }

    /// Makes a bucket of a random name.
    pub(crate) async fn bucket(&self) -> String {
        let bucket = format!("test-{}", uuid::Uuid::new_v4().simple());
        self.client()
            .create_bucket()
            .bucket(&bucket)
            .send()
            .await
            .unwrap();
        bucket
    }
}
