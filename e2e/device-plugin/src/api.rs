//! The generated messages of the kubelet's device plugin API.

#![allow(missing_docs, unreachable_pub, clippy::all)]

tonic::include_proto!("v1beta1");
