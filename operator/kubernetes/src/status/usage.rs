//! What a job used: time, energy and money of devices.

use std::collections::BTreeMap;

use prover_coordinator::JobView;
use prover_crds::{Cost, JobUsage, ProverClusterSpec};

/// Millionths of a currency unit: the finest price that the schema takes.
const MICROS: u128 = 1_000_000;
const MILLISECONDS_PER_HOUR: u128 = 3_600_000;
/// Digits after the point of a cost.
const COST_DIGITS: usize = 6;

/// What a device of a worker group costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupPrice {
    /// Millionths of the currency for one worker and hour.
    pub(crate) micros_per_hour: u64,
    pub(crate) currency: String,
    /// Devices that share the worker.
    pub(crate) devices: u32,
}

/// Prices by worker group; groups without a price are absent.
pub(crate) type GroupPrices = BTreeMap<String, GroupPrice>;

/// The prices that a ProverCluster names.
pub(crate) fn prices(spec: &ProverClusterSpec) -> GroupPrices {
    let priced = spec.worker_groups.iter().filter_map(|group| {
        let price = group.cost.as_ref()?;
        let cpu = group.device.cpu.as_ref().and_then(|cpu| cpu.count);
        let gpu = group.device.gpu.as_ref().and_then(|gpu| gpu.count);
        let devices = gpu.or(cpu).unwrap_or(1);
        let price = GroupPrice {
            micros_per_hour: micros(&price.per_hour)?,
            currency: price.currency.clone(),
            devices: u32::try_from(devices).unwrap_or(1).max(1),
        };
        Some((group.name.clone(), price))
    });
    priced.collect()
}

/// A decimal number with up to six digits after the point; none where it is no such number.
fn micros(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > COST_DIGITS {
        return None;
    }
    let fraction: u64 = format!("{fraction:0<COST_DIGITS$}").parse().ok()?;
    whole
        .parse::<u64>()
        .ok()?
        .checked_mul(1_000_000)?
        .checked_add(fraction)
}

/// What a job used so far; none before its first attempt.
pub(super) fn usage(view: &JobView, prices: &GroupPrices) -> Option<JobUsage> {
    if view.attempts == 0 {
        return None;
    }
    let energy = view.energy_joules;
    Some(JobUsage {
        device_milliseconds: (view.device_seconds.max(0.0) * 1_000.0).round() as i64,
        energy_joules: (energy > 0.0).then_some(energy.round() as i64),
        cost: cost(view, prices),
    })
}

/// The device time at the groups' prices; none where a group has no price or they use several currencies.
fn cost(view: &JobView, prices: &GroupPrices) -> Option<Cost> {
    let mut currency: Option<&str> = None;
    let mut total: u128 = 0;
    for (group, time) in &view.device_time_by_group {
        let price = prices.get(&**group)?;
        if *currency.get_or_insert(&price.currency) != price.currency {
            return None;
        }
        total += time.as_millis() * u128::from(price.micros_per_hour) / u128::from(price.devices);
    }
    let amount = total / MILLISECONDS_PER_HOUR;
    Some(Cost {
        amount: format!("{}.{:0COST_DIGITS$}", amount / MICROS, amount % MICROS),
        currency: currency?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimal_prices_are_read_exactly() {
        for (text, expected) in [
            ("2.49", Some(2_490_000)),
            ("0", Some(0)),
            ("12", Some(12_000_000)),
            ("0.000001", Some(1)),
            ("0.0000001", None),
            ("a", None),
            ("1.x", None),
        ] {
            assert_eq!(micros(text), expected, "{text}");
        }
    }
}
