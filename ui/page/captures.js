export function setup() {}
export function tasks() {}
