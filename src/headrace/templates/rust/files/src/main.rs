//! `serve` (the default) or `healthcheck`.

use std::process::ExitCode;

use service::config::Config;
use service::{health, run, shutdown, telemetry};

#[tokio::main]
async fn main() -> ExitCode {
    let config = match Config::from_env() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    match std::env::args().nth(1).as_deref() {
        None | Some("serve") => serve(config).await,
        Some("healthcheck") => match health::probe(config.http_addr).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        },
        Some(other) => {
            eprintln!("expected serve or healthcheck, got {other:?}");
            ExitCode::from(2)
        }
    }
}

async fn serve(config: Config) -> ExitCode {
    let telemetry = match telemetry::start() {
        Ok(telemetry) => telemetry,
        Err(error) => {
            eprintln!("telemetry: {error}");
            return ExitCode::from(2);
        }
    };
    let result = async {
        let listener = tokio::net::TcpListener::bind(config.http_addr).await?;
        tracing::info!(?config, "starting");
        run(config, listener, shutdown::on_signal()?).await
    };
    let code = match result.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the service ends");
            ExitCode::FAILURE
        }
    };
    telemetry.stop();
    code
}
