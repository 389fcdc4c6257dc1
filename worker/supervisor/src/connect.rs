//! Reaching the agent's socket, however long it takes.

use std::path::Path;
use std::time::Instant;

use tonic::transport::Channel;

use crate::limits::{LONGEST_PAUSE, REMIND_EVERY, SHORTEST_PAUSE};

/// Waits until the agent answers on its socket.
pub(crate) async fn connect(socket: &Path) -> Channel {
    let began = Instant::now();
    let mut pause = SHORTEST_PAUSE;
    let mut reminded: Option<Instant> = None;
    loop {
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_: tonic::transport::Uri| {
            let path = path.clone();
            async move {
                let stream = tokio::net::UnixStream::connect(path).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        });
        // The connector decides where to; the address only fills in the header.
        let endpoint = tonic::transport::Endpoint::from_static("http://agent.invalid");
        match endpoint.connect_with_connector(connector).await {
            Ok(channel) => return channel,
            Err(error) => {
                if reminded.is_none_or(|at| at.elapsed() >= REMIND_EVERY) {
                    reminded = Some(Instant::now());
                    tracing::info!(
                        socket = %socket.display(), waited_seconds = began.elapsed().as_secs(), problem = %root_cause(&error),
                        "waiting for the agent of this worker"
                    );
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
