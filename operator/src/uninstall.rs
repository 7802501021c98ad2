//! The chart's pre-delete hook: agents that lose their operator keep their traces on nodes.

use std::io::Write as _;

use crds::DevicePluginConfig;
use kube::Client;
use kube::api::{Api, ListParams, PartialObjectMeta};
use operator_core::messages::Names;

use crate::client::call;

/// What is left before an uninstall.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Left {
    /// Nothing that needs the operator.
    Nothing,
    /// Configs of these names.
    Configs(Vec<String>),
}

/// The API server's code for a kind that is not served; its answer is plain text.
const NOT_FOUND: u16 = 404;

/// Looks for configs. Where their kind is gone, so are they.
///
/// # Errors
/// When the API server cannot be asked.
pub async fn left(client: Client) -> anyhow::Result<Left> {
    let api: Api<PartialObjectMeta<DevicePluginConfig>> = Api::all(client);
    match call(api.list(&ListParams::default())).await {
        Ok(list) if list.items.is_empty() => Ok(Left::Nothing),
        Ok(list) => {
            let names = list
                .items
                .into_iter()
                .filter_map(|config| config.metadata.name);
            Ok(Left::Configs(names.collect()))
        }
        Err(error)
            if error
                .status()
                .is_some_and(|status| status.code == NOT_FOUND) =>
        {
            Ok(Left::Nothing)
        }
        Err(error) => Err(anyhow::Error::new(error).context("failed to list DevicePluginConfigs")),
    }
}

/// Says on standard error what is left and what to do.
///
/// # Errors
/// When nobody listens.
pub fn refuse(names: &[String]) -> std::io::Result<()> {
    writeln!(std::io::stderr(), "{}", refusal(names))
}

/// The message.
pub fn refusal(names: &[String]) -> String {
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let (count, list) = (names.len(), Names(&names));
    format!(
        "uninstall refused: {count} DevicePluginConfig(s) still exist: {list}. Their devices would stay on the nodes without anybody to take them back. \
Delete them first: `kubectl delete devicepluginconfigs --all` (it waits until every node is clean), then uninstall again. \
To uninstall all the same: `helm uninstall --no-hooks`; agents, node labels and the configs with their finalizer then stay until the operator is installed again."
    )
}
