import type { Dashboard } from '@grafana/schema';

/** A type as JSON represents it: enum values are plain strings. */
type Json<T> = T extends string ? `${T}` : T extends (infer Item)[] ? Json<Item>[] : T extends object ? { [Key in keyof T]: Json<T[Key]> } : T;

export type DashboardFile = Json<Dashboard>;
