use crate::cli;
use crate::commands::{Exit, Failure};
use crate::config::Config;
use crate::shutdown::Shutdown;
pub(super) async fn demo(
    _config: Config,
    _demo: cli::Demo,
    _shutdown: &Shutdown,
) -> Result<Exit, Failure> {
    Ok(Exit::Done)
}
