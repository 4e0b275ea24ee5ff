//! The people, machines and addresses of the make-believe cluster. Addresses and domains are from
//! the ranges that are reserved for documentation.

use serde_json::{Value, json};

use super::random::Random;

/// Somebody who uses the cluster.
#[derive(Clone, Copy)]
pub(super) struct Person {
    pub(super) user: &'static str,
    roles: &'static [&'static str],
    logins: &'static [&'static str],
}

const PEOPLE: &[Person] = &[
    person("ada@example.com", &["access", "editor"], &["root", "ada"]),
    person("bao.nguyen@example.com", &["access"], &["ubuntu", "bao"]),
    person("carla@example.com", &["access", "db-reader"], &["carla"]),
    person("Zoë.Çelik@example.org", &["access", "auditor"], &["zoe"]),
    person("dmitri@example.com", &["access", "kube-admin"], &["root"]),
    person("李雷", &["access"], &["ec2-user"]),
    person(
        "fatima@example.net",
        &["access", "db-admin", "reviewer"],
        &["fatima"],
    ),
    person(
        "grace@example.com",
        &["windows-operators", "access"],
        &["Administrator"],
    ),
    person("henrik@example.org", &["contractor"], &["henrik"]),
    person(
        "ines@example.com",
        &["access", "editor", "auditor"],
        &["root", "ines"],
    ),
];

const fn person(
    user: &'static str,
    roles: &'static [&'static str],
    logins: &'static [&'static str],
) -> Person {
    Person {
        user,
        roles,
        logins,
    }
}

impl Person {
    pub(super) fn any(random: &mut Random) -> Self {
        random.pick(PEOPLE)
    }

    pub(super) fn login(&self, random: &mut Random) -> &'static str {
        random.pick(self.logins)
    }

    pub(super) fn roles(&self) -> Value {
        json!(self.roles)
    }

    /// The user group of an event.
    pub(super) fn fields(&self, cluster: &str) -> Value {
        json!({
            "user": self.user,
            "user_kind": 1,
            "user_cluster_name": cluster,
            "user_roles": self.roles,
            "user_traits": {"logins": self.logins, "kubernetes_groups": [], "team/name": ["core"]},
        })
    }
}

/// A machine of the cluster.
#[derive(Clone, Copy)]
pub(super) struct Host {
    pub(super) name: &'static str,
    zone: &'static str,
    number: u8,
}

const HOSTS: &[Host] = &[
    host("web-01", "eu-west-1a", 11),
    host("web-02", "eu-west-1b", 12),
    host("db-primary", "eu-west-1a", 21),
    host("db-replica", "eu-west-1c", 22),
    host("build-01", "us-east-2a", 31),
    host("bastion", "us-east-2b", 41),
    host("gpu-node-7", "ap-south-1a", 57),
];

const fn host(name: &'static str, zone: &'static str, number: u8) -> Host {
    Host { name, zone, number }
}

impl Host {
    pub(super) fn any(random: &mut Random) -> Self {
        random.pick(HOSTS)
    }

    /// The machine's id: the same wherever it is named.
    pub(super) fn id(&self) -> String {
        Random::new(u64::from(self.number)).uuid()
    }

    pub(super) fn address(&self, port: u16) -> String {
        format!("192.0.2.{}:{port}", self.number)
    }

    /// The server group of an event.
    pub(super) fn fields(&self) -> Value {
        json!({
            "namespace": "default",
            "server_id": self.id(),
            "server_hostname": self.name,
            "server_addr": self.address(3022),
            "server_version": "18.2.0",
            "server_labels": {
                "env": "prod",
                "teleport.internal/resource-id": self.id(),
                "topology.kubernetes.io/zone": self.zone,
                "aws/Name": self.name,
            },
        })
    }
}

/// Where somebody comes from: mostly IPv4, now and then IPv6.
pub(super) fn remote(random: &mut Random) -> String {
    let port = random.between(32_768, 60_999);
    if random.chance(8) {
        return format!("[2001:db8::{:x}]:{port}", random.between(1, 0xffff));
    }
    let network = random.pick(&["198.51.100", "203.0.113"]);
    format!("{network}.{}:{port}", random.between(1, 254))
}
