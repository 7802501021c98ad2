//! The protocols are what kubelets speak: every field's number, type and place, and every call's
//! path, as the kubelet's wire tables have them.

use std::error::Error;
use std::fmt::Write;

const DEVICE_PLUGIN: &str = "\
service DevicePlugin: GetDevicePluginOptions(Empty)->DevicePluginOptions ListAndWatch(Empty)->stream ListAndWatchResponse GetPreferredAllocation(PreferredAllocationRequest)->PreferredAllocationResponse Allocate(AllocateRequest)->AllocateResponse PreStartContainer(PreStartContainerRequest)->PreStartContainerResponse
service Registration: Register(RegisterRequest)->Empty
AllocateRequest: 1 repeated ContainerAllocateRequest container_requests
AllocateResponse: 1 repeated ContainerAllocateResponse container_responses
CDIDevice: 1 string name
ContainerAllocateRequest: 1 repeated string devices_ids
ContainerAllocateResponse: 1 map envs, 2 repeated Mount mounts, 3 repeated DeviceSpec devices, 4 map annotations, 5 repeated CDIDevice cdi_devices
ContainerPreferredAllocationRequest: 1 repeated string available_deviceIDs, 2 repeated string must_include_deviceIDs, 3 int32 allocation_size
ContainerPreferredAllocationResponse: 1 repeated string deviceIDs
Device: 1 string ID, 2 string health, 3 TopologyInfo topology
DevicePluginOptions: 1 bool pre_start_required, 2 bool get_preferred_allocation_available
DeviceSpec: 1 string container_path, 2 string host_path, 3 string permissions
Empty:
ListAndWatchResponse: 1 repeated Device devices
Mount: 1 string container_path, 2 string host_path, 3 bool read_only
NUMANode: 1 int64 ID
PreStartContainerRequest: 1 repeated string devices_ids
PreStartContainerResponse:
PreferredAllocationRequest: 1 repeated ContainerPreferredAllocationRequest container_requests
PreferredAllocationResponse: 1 repeated ContainerPreferredAllocationResponse container_responses
RegisterRequest: 1 string version, 2 string endpoint, 3 string resource_name, 4 DevicePluginOptions options
TopologyInfo: 1 repeated NUMANode nodes
";

const POD_RESOURCES: &str = "\
service PodResourcesLister: List(ListPodResourcesRequest)->ListPodResourcesResponse GetAllocatableResources(AllocatableResourcesRequest)->AllocatableResourcesResponse Get(GetPodResourcesRequest)->GetPodResourcesResponse
AllocatableResourcesRequest:
AllocatableResourcesResponse: 1 repeated ContainerDevices devices, 2 repeated int64 cpu_ids, 3 repeated ContainerMemory memory
CDIDevice: 1 string name
ClaimResource: 1 repeated CDIDevice cdi_devices, 2 string driver_name, 3 string pool_name, 4 string device_name, 5 string share_id
ContainerDevices: 1 string resource_name, 2 repeated string device_ids, 3 TopologyInfo topology
ContainerMemory: 1 string memory_type, 2 uint64 size, 3 TopologyInfo topology
ContainerResources: 1 string name, 2 repeated ContainerDevices devices, 3 repeated int64 cpu_ids, 4 repeated ContainerMemory memory, 5 repeated DynamicResource dynamic_resources
DynamicResource: 2 string claim_name, 3 string claim_namespace, 4 repeated ClaimResource claim_resources
GetPodResourcesRequest: 1 string pod_name, 2 string pod_namespace
GetPodResourcesResponse: 1 PodResources pod_resources
ListPodResourcesRequest:
ListPodResourcesResponse: 1 repeated PodResources pod_resources
NUMANode: 1 int64 ID
PodResources: 1 string name, 2 string namespace, 3 repeated ContainerResources containers, 4 repeated int64 cpu_ids, 5 repeated ContainerMemory memory
TopologyInfo: 1 repeated NUMANode nodes
";

/// A protocol in the form of the tables above: services first, then messages, each sorted.
fn described(file: &str) -> Result<(String, String), Box<dyn Error>> {
    let directory = env!("CARGO_MANIFEST_DIR");
    let files = protox::compile([file], [directory])?.file;
    let file = files.into_iter().next().ok_or("no file")?;
    let short = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
    let mut services = Vec::new();
    for service in &file.service {
        let mut line = format!("service {}:", service.name());
        for method in &service.method {
            let stream = if method.server_streaming() {
                "stream "
            } else {
                ""
            };
            let (from, to) = (short(method.input_type()), short(method.output_type()));
            write!(line, " {}({from})->{stream}{to}", method.name())?;
            assert!(!method.client_streaming(), "{}", method.name());
        }
        services.push(line);
    }
    let mut messages = Vec::new();
    for message in &file.message_type {
        let mut fields = Vec::new();
        for field in &message.field {
            let of = match field.type_name() {
                "" => format!("{:?}", field.r#type()).to_lowercase(),
                name => short(name),
            };
            let repeated = if field.label() as i32 == 3 {
                "repeated "
            } else {
                ""
            };
            let is_map = message.nested_type.iter().any(|nested| nested.name() == of);
            let kind = if is_map {
                "map".to_owned()
            } else {
                format!("{repeated}{of}")
            };
            fields.push(format!("{} {kind} {}", field.number(), field.name()));
        }
        let line = format!("{}: {}", message.name(), fields.join(", "));
        messages.push(line.trim_end().to_owned());
    }
    services.sort();
    messages.sort();
    let text: String = services
        .iter()
        .chain(&messages)
        .map(|line| format!("{line}\n"))
        .collect();
    Ok((file.package().to_owned(), text))
}

#[test]
fn the_device_plugin_protocol_is_the_kubelets() -> Result<(), Box<dyn Error>> {
    let (package, text) = described("deviceplugin_v1beta1.proto")?;
    assert_eq!(package, "v1beta1");
    assert_eq!(text, DEVICE_PLUGIN);
    Ok(())
}

#[test]
fn the_pod_resources_protocol_is_the_kubelets() -> Result<(), Box<dyn Error>> {
    let (package, text) = described("podresources_v1.proto")?;
    assert_eq!(package, "v1");
    assert_eq!(text, POD_RESOURCES);
    Ok(())
}

#[test]
fn calls_have_the_kubelets_paths() {
    use proto::podresources::pod_resources_lister_server;
    use proto::v1beta1::{device_plugin_server, registration_server};
    assert_eq!(registration_server::SERVICE_NAME, "v1beta1.Registration");
    assert_eq!(device_plugin_server::SERVICE_NAME, "v1beta1.DevicePlugin");
    assert_eq!(
        pod_resources_lister_server::SERVICE_NAME,
        "v1.PodResourcesLister"
    );
}
