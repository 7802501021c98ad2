//! A device plugin as vendors ship them: registers once with a fixed socket name and serves a fixed
//! list. The cluster tests run it beside our agent, in a node's mount namespace, to see that what
//! it serves is left alone. Ends with SIGTERM.

use std::path::PathBuf;
use std::pin::Pin;

use anyhow::Context;
use clap::Parser;
use proto::v1beta1::device_plugin_server::{DevicePlugin, DevicePluginServer};
use proto::v1beta1::registration_client::RegistrationClient;
use proto::v1beta1::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse, Device, DevicePluginOptions,
    DeviceSpec, Empty, ListAndWatchResponse, PreStartContainerRequest, PreStartContainerResponse,
    PreferredAllocationRequest, PreferredAllocationResponse, RegisterRequest,
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};

/// A device plugin that knows only the happy path.
#[derive(Debug, Parser)]
struct Arguments {
    /// The extended resource to serve.
    #[arg(long)]
    resource: String,
    /// How many devices to advertise.
    #[arg(long, default_value_t = 2)]
    devices: u32,
    /// Registers again and again, each time at another socket, with so many milliseconds between:
    /// as a plugin does that fights for its resource. Left out: registers once.
    #[arg(long)]
    again_every_millis: Option<u64>,
    /// The kubelet's plugin directory.
    #[arg(long, default_value = "/var/lib/kubelet/device-plugins")]
    directory: PathBuf,
}

#[derive(Debug)]
struct Plugin {
    devices: Vec<Device>,
}

#[tonic::async_trait]
impl DevicePlugin for Plugin {
    type ListAndWatchStream =
        Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(DevicePluginOptions::default()))
    }

    async fn list_and_watch(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let list = ListAndWatchResponse {
            devices: self.devices.clone(),
        };
        let stream = tokio_stream::once(Ok(list)).chain(tokio_stream::pending());
        Ok(Response::new(Box::pin(stream)))
    }

    async fn get_preferred_allocation(
        &self,
        _: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        Ok(Response::new(PreferredAllocationResponse::default()))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let containers = request.into_inner().container_requests;
        let container_responses = containers
            .iter()
            .map(|container| ContainerAllocateResponse {
                devices: container.devices_ids.iter().map(|_| null()).collect(),
                ..ContainerAllocateResponse::default()
            })
            .collect();
        Ok(Response::new(AllocateResponse {
            container_responses,
        }))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Ok(Response::new(PreStartContainerResponse::default()))
    }
}

/// What containers get instead of a device.
fn null() -> DeviceSpec {
    DeviceSpec {
        container_path: "/dev/null".to_owned(),
        host_path: "/dev/null".to_owned(),
        permissions: "rw".to_owned(),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let name = arguments.resource.replace('/', "_");
    let Some(millis) = arguments.again_every_millis else {
        return serve(&arguments, format!("naive-{name}.sock")).await;
    };
    let mut number = 0_u32;
    loop {
        number += 1;
        let endpoint = format!("naive-{name}-{number}.sock");
        let served = serve(&arguments, endpoint);
        let time = std::time::Duration::from_millis(millis);
        // What is served until then is dropped, and its stream with it.
        if let Ok(ended) = tokio::time::timeout(time, served).await {
            ended?;
        }
    }
}

/// Serves at a socket, and registers it once.
async fn serve(arguments: &Arguments, endpoint: String) -> anyhow::Result<()> {
    let socket = arguments.directory.join(&endpoint);
    if socket.exists() {
        std::fs::remove_file(&socket).with_context(|| format!("failed to remove {socket:?}"))?;
    }
    let listener =
        UnixListener::bind(&socket).with_context(|| format!("failed to listen at {socket:?}"))?;
    let devices = (0..arguments.devices)
        .map(|index| Device {
            id: format!("naive-{index}"),
            health: "Healthy".to_owned(),
            topology: None,
        })
        .collect();
    let server = Server::builder()
        .add_service(DevicePluginServer::new(Plugin { devices }))
        .serve_with_incoming(UnixListenerStream::new(listener));
    let register = async {
        let kubelet = format!(
            "unix:{}",
            arguments.directory.join("kubelet.sock").display()
        );
        let channel = Endpoint::try_from(kubelet)?.connect().await?;
        RegistrationClient::new(channel)
            .register(RegisterRequest {
                version: "v1beta1".to_owned(),
                endpoint,
                resource_name: arguments.resource.clone(),
                options: None,
            })
            .await?;
        anyhow::Ok(())
    };
    // The kubelet calls back while it answers the registration, so both run at once.
    let (served, registered) = tokio::join!(server, async {
        let outcome = register.await.context("failed to register at the kubelet");
        if let Err(error) = &outcome {
            tokio::task::yield_now().await;
            eprintln_chain(error);
            std::process::exit(1);
        }
        outcome
    });
    registered?;
    served.context("failed to serve")
}

#[expect(
    clippy::print_stderr,
    reason = "a command line program tells errors on standard error"
)]
fn eprintln_chain(error: &anyhow::Error) {
    eprintln!("{error:#}");
}
