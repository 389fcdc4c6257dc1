-- A job that waits or runs is progressing; only one that ended without a proof is degraded.
local health = {status = "Progressing", message = "Waiting for a coordinator to accept the job"}
if obj.status == nil then
  return health
end

local conditions = {}
for _, condition in ipairs(obj.status.conditions or {}) do
  conditions[condition.type] = condition
end
local function holds(type)
  return conditions[type] ~= nil and conditions[type].status == "True"
end
local function message(type, otherwise)
  local condition = conditions[type]
  if condition ~= nil and condition.message ~= nil and condition.message ~= "" then
    return condition.message
  end
  return otherwise
end

-- An end is final: it holds whatever is changed in the specification afterwards.
if holds("Succeeded") then
  health.status = "Healthy"
  health.message = message("Succeeded", "The proof is in the store and verified")
  if obj.status.emulated then
    health.message = "Emulated: nothing was proved"
  end
  return health
end
if holds("Failed") then
  health.status = "Degraded"
  health.message = message("Failed", "The job ended without a proof")
  return health
end
-- There is no proof, so nothing that waits for this job may go on.
if holds("Cancelled") then
  health.status = "Degraded"
  health.message = message("Cancelled", "The job was cancelled")
  return health
end

if obj.status.observedGeneration ~= nil and obj.metadata.generation ~= nil
    and obj.status.observedGeneration < obj.metadata.generation then
  health.message = "Waiting for the coordinator to see the last change"
  return health
end
if obj.status.phase == "Suspended" or holds("Suspended") then
  health.status = "Suspended"
  health.message = message("Suspended", "The job is suspended; what is finished is kept")
  return health
end
if obj.status.message ~= nil and obj.status.message ~= "" then
  health.message = obj.status.message
elseif obj.status.phase ~= nil then
  health.message = obj.status.phase
end
if obj.status.phase == "Running" and obj.status.progress ~= nil and obj.status.progress.summary ~= nil then
  health.message = obj.status.progress.summary .. " tasks"
end
return health
